"""Selection of single keys by their one-bit codes, and what stands for the keys that are not selected."""
