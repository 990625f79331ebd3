"""Choices of memory ranked over many tasks, at equal numbers of attended tokens."""
