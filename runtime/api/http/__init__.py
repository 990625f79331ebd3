"""The HTTP server: routes for clients of OpenAI and Anthropic, and for operators. README.md lists them."""
