"""GGUF files as models: header, configuration, names and tensors."""
