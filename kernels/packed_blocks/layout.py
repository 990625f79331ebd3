"""Where the parts of a packed block lie. The module needs nothing but Python: sizes are asked for without Numba.

A block holds keys and values [Hkv, B, D] of one layer:

    block  │ head 0 │ head 1 │ … │ head Hkv - 1 │ value statistics, where all heads share them │ zeros to 64 bytes │

    head   │ key codes [B] rows       │  a row is `row_bytes`
           │ value codes [B] rows     │
           │ key statistics           │  fp16 scale [width], fp16 zero [width]; not there when the layer has them
           │ value statistics         │  fp16 scale [B], fp16 zero [B]; not there when all heads share them
           │ outliers                 │  uint16 number of keys, uint16 number of values, uint16 places [capacity],
           │                          │  fp16 exact numbers [capacity]; NUQ formats alone have outliers

Each part begins at a multiple of 16 bytes. `width` is D, padded to a multiple of 16 channels (of 32 at 4
bits); a padded channel's code is 0 and means nothing. A row holds the codes of its channels so:

    8 bits   byte i: channel i
    4 bits   byte i: channel i in the low half, channel i + width / 2 in the high half
    2 bits   32-bit word w: channels 16 w to 16 w + 15, two bits each, the first channel lowest
    3 bits   the low two bits of all channels as at 2 bits; then 16-bit word w: the third bit of channels 16 w to
             16 w + 15, the first channel lowest

The outliers among the keys come first in the list, those among the values follow. A place is t * D + d for channel d
of token t; the places of keys ascend, and so do those of values. What is beyond both is 0. An outlier's own code is
0, and its exact number replaces what the code says. Elsewhere code c of a row means
zero + scale * level, where the level is c in the uniform formats, and levels[c] in the others.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

ALIGNMENT = 16
"""Bytes to whose multiple each part of a head begins."""
BLOCK_ALIGNMENT = 64
"""Bytes of which a block is a multiple."""
NUM_LEVELS = 16
"""Entries of a table of levels: what one register of float32 holds."""
NOTHING = -1
"""The offset of a part that a block does not have."""
_HALF = 2
"""Bytes of an fp16, and of a place."""
_SMALLER = {4: 37, 3: 48, 2: 69}
"""By bits: ten times as much smaller than fp16 as a block with outliers shall be (KVQuant, table 5)."""
_MOST_OUTLIERS, _LEAST_OUTLIERS = 0.01, 0.005
"""Shares of a head's keys and values that may be outliers."""


_KEYS, _KEYS_CALIBRATED = 0.5, 0.875
"""Shares of a list that keys may take. Calibrated limits leave few keys outside, but many of them in few blocks, and
errors of keys cost more than those of values. Without limits as many keys are far from their mean as values are."""


class PackedFamily(NamedTuple):
    """What the formats differ in, other than in the number of bits."""

    bits: int
    uniform: bool = False
    """Whether levels are equally spaced from the minimum on: INT8 and INT4."""
    outliers: bool = False
    """Whether outliers are kept apart, and values have one scale and zero point for all heads of a token."""


class PackedLayout(NamedTuple):
    """Sizes and offsets in bytes, which compiled code reads. Those of parts count from the start of their head."""

    bits: int
    uniform: bool
    """Whether code c stands for zero + scale * c."""
    num_kv_heads: int
    block_size: int
    head_dim: int
    width: int
    """Channels of a row with its padding."""
    row_bytes: int
    """Of the codes of one row."""
    high_plane: int
    """Where in a row of 3-bit codes the third bits begin."""
    key_codes: int
    value_codes: int
    key_stats: int
    """NOTHING where the layer's quantizer has them."""
    value_stats: int
    """Counts from the start of the block, as it may belong to all heads."""
    value_stats_stride: int
    """From the value statistics of one head to those of the next; 0 where they are the same."""
    outliers: int
    capacity: int
    """Outliers that the list of a head can hold; 0 where it has none."""
    key_capacity: int
    """How many of them keys may have. What keys do not use is left to values."""
    head_bytes: int
    block_bytes: int


def aligned(num_bytes: int, alignment: int = ALIGNMENT) -> int:
    """The next multiple of `alignment`."""
    return -(-num_bytes // alignment) * alignment


@cache
def packed_layout(
    family: PackedFamily, num_kv_heads: int, block_size: int, head_dim: int, calibrated: bool = False
) -> PackedLayout:
    """The layout of blocks of a family; `calibrated` says that the layer has the statistics of its keys.

    Raises ValueError for a block with more places than 16 bits number.
    """
    if family.outliers and block_size * head_dim > 1 << 16:
        raise ValueError(
            f"a packed block holds {(1 << 16) // head_dim} tokens at most for heads of {head_dim} channels"
        )
    width = aligned(head_dim, 32 if family.bits == 4 else 16)
    row_bytes = width * family.bits // 8
    codes = aligned(block_size * row_bytes)
    key_stats = 2 * codes
    own_keys = 0 if calibrated else 2 * _HALF * width
    own_values = aligned(2 * _HALF * block_size)
    lists = key_stats + own_keys + (0 if family.outliers else own_values)
    shared = own_values if family.outliers else 0
    capacity, list_bytes = 0, 0
    if family.outliers:
        room = _room(family.bits, num_kv_heads, block_size, head_dim) if calibrated else None
        capacity = _capacity(2 * block_size * head_dim, room and (room - shared) // num_kv_heads - lists)
        list_bytes = aligned(2 * _HALF * (1 + capacity))
    head_bytes = lists + list_bytes
    return PackedLayout(
        bits=family.bits,
        uniform=family.uniform,
        num_kv_heads=num_kv_heads,
        block_size=block_size,
        head_dim=head_dim,
        width=width,
        row_bytes=row_bytes,
        high_plane=width // 4 if family.bits == 3 else 0,
        key_codes=0,
        value_codes=codes,
        key_stats=NOTHING if calibrated else key_stats,
        value_stats=num_kv_heads * head_bytes if family.outliers else key_stats + own_keys,
        value_stats_stride=0 if family.outliers else head_bytes,
        outliers=lists if family.outliers else NOTHING,
        capacity=capacity,
        key_capacity=int((_KEYS_CALIBRATED if calibrated else _KEYS) * capacity),
        head_bytes=head_bytes,
        block_bytes=aligned(num_kv_heads * head_bytes + shared, BLOCK_ALIGNMENT),
    )


def table_bytes(layout: PackedLayout) -> int:
    """Bytes of the tables by which a device reads the blocks of a layer: levels, and scale and zero point of keys."""
    return 4 * (2 * NUM_LEVELS + 2 * layout.num_kv_heads * layout.width)


def _room(bits: int, num_kv_heads: int, block_size: int, head_dim: int) -> int:
    """Bytes that a block may have to be as small as KVQuant's."""
    in_half = 2 * num_kv_heads * block_size * head_dim * _HALF
    return in_half * 10 // _SMALLER[bits] // BLOCK_ALIGNMENT * BLOCK_ALIGNMENT


def _capacity(num_elements: int, room: int | None) -> int:
    """Places of a list, which must fit into `room` bytes where it is given and holds the least share."""
    most, least = (round(share * num_elements) for share in (_MOST_OUTLIERS, _LEAST_OUTLIERS))
    fits = most if room is None else room // ALIGNMENT * ALIGNMENT // (2 * _HALF) - 1
    return max(2, least, min(most, fits))
