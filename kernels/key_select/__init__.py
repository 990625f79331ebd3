"""Selection of single keys by their one-bit codes, and by exact logits of the best of these."""
