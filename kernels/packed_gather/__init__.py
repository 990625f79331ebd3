"""Packed blocks that a GPU reads and expands to fp16; on a CPU `packed_blocks.decode` unpacks blocks."""
