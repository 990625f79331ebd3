"""Tools of a request: what clients send, what the model gets of it, and calls in its answers."""
