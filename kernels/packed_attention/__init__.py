"""Attention of a GPU over blocks that stay packed; `block_attention.packed` is that of a CPU."""
