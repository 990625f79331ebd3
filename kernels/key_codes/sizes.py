"""Sizes of the codes of keys."""

from __future__ import annotations

TOKENS = 16
"""A block whose keys have codes holds a multiple of this many tokens, so that vectors of 16 lanes read whole keys."""
HALF_BYTES = 2
"""Bytes of the scale of a key, and of a channel of the mean value: the bits of an fp16."""

CENTRES = 4
"""Centres that stand for the keys of a block where the first level has them."""
CENTRE_CHANNELS = 32
"""Codes of centres are of a multiple of so many channels; those beyond the head size are 0."""


def num_planes(dim: int) -> int:
    """Bytes that hold the signs of one key, each in a plane of its own."""
    return -(-dim // 8)


def code_bytes(num_kv_heads: int, block_size: int, dim: int) -> int:
    """Bytes of the codes of all keys of one block, and of its mean values."""
    return num_kv_heads * (block_size * (num_planes(dim) + HALF_BYTES) + HALF_BYTES * dim)


def centre_bytes(num_kv_heads: int, dim: int) -> int:
    """Bytes of the centres of one block: four bits a channel, and two fp16 for each, its scale and its radius."""
    channels = -(-dim // CENTRE_CHANNELS) * CENTRE_CHANNELS
    return num_kv_heads * CENTRES * (channels // 2 + 2 * HALF_BYTES)
