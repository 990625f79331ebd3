"""Routes of the Anthropic API: messages, and the count of their tokens."""
