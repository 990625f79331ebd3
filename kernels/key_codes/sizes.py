"""Sizes of the codes of keys."""

from __future__ import annotations

WORD_BITS = 64
"""Channels whose signs one word of a key holds."""
TOKENS = 16
"""A block whose keys have codes holds a multiple of this many tokens, so that vectors of 16 lanes read whole keys."""
SCALE_BYTES = 2
"""Of the scale of a key, the bits of an fp16."""


def code_words(dim: int) -> int:
    """Words of one key's signs."""
    return -(-dim // WORD_BITS)


def code_bytes(num_kv_heads: int, block_size: int, dim: int) -> int:
    """Of the codes of all keys of one block."""
    return num_kv_heads * block_size * (code_words(dim) * WORD_BITS // 8 + SCALE_BYTES)
