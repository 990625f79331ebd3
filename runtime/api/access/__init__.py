"""Who may use a server: API keys, and encrypted connections."""
