"""Formats of stored keys and values side by side: their bytes, their perplexity, and what they still retrieve."""
