"""Which blocks are attended: scores, reuse, and the importance of keys."""
