"""What one head needs to attend packed blocks by int16 products, for heads of 64 or 128 channels.

Either all channels are rotated or none. Keys and values are unpacked to int16 a tile at a time, keys are rotated as
int16, and products are summed in int32. A key's int16 is a multiple of 1 / 23 080 of its range (1 / 5 770 where the
format has outliers), a query's of at most 1 / 32 700 of the sum over 32 of its channels, a weight's of 1 / 32 700 of
the sum of its tile's.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from moorage.kernels.block_attention.short_rows import (
    TILE_ROWS,
    add_summed_64,
    add_summed_128,
    clear_row,
    scale_column,
    scale_row,
    transpose_64,
    transpose_128,
)
from moorage.kernels.block_attention.short_tiles import (
    TILE,
)
from moorage.kernels.compiling import njit
from moorage.kernels.key_select.lanes import load_float, store_float
from moorage.kernels.numba_flags import INLINE, SERIAL
from moorage.kernels.packed_blocks.short_operands import (
    ANGLE_ONE,
    MOST_KEY,
    OUTLIER_RANGES,
    prepare_angles_64,
    prepare_angles_128,
    prepare_keys_64,
    prepare_keys_128,
    prepare_levels,
    prepare_query_64,
    prepare_query_128,
)
from moorage.kernels.packed_blocks.short_outliers import prepare_outliers_64, prepare_outliers_128
from moorage.kernels.packed_blocks.short_units import (
    UNIT,
    UNIT_BYTES,
    VECTORS,
)
from moorage.kernels.packed_blocks.unpack_plain import load_half
from moorage.kernels.packed_blocks.unpack_tiles import widen_rows
from moorage.kernels.simd_words import HAS_PAIR_DOTS, VECTOR_BYTES

CHUNK = 4
"""Queries that are attended side by side; arrays are for a multiple of them."""
_SPARE_ROWS = 2 * TILE
"""Rows of angles that are read behind the last key."""
_UNROTATED = np.float32(ANGLE_ONE / 2**15)
"""What a rotation makes of an int16 besides rotating it."""
_ONE, _ZERO, _LEAST = np.float32(1), np.float32(0), np.float32(-np.inf)


class Levels(NamedTuple):
    """A level is middle + span * int16 / LEVEL_ONE."""

    middle: Any
    span: Any


class Desk(NamedTuple):
    """Addresses of what one head needs beside its blocks, float32 unless it is said.

    Q is the number of queries, rounded up to a multiple of CHUNK.
    """

    key_table: Any
    """[32] int16"""
    value_table: Any
    operands: Any
    """[2 * VECTORS, 32] int16: scale and zero of keys"""
    ranges: Any
    """[D / 2]"""
    shares: Any
    """[D / 2]: int16 of a key by its number"""
    offsets: Any
    """[capacity + 16] int32: where in unpacked rows the outliers of keys lie"""
    shorts: Any
    """[capacity + 16] int16: these"""
    queries: Any
    """[Q, VECTORS, 32] int16"""
    factors: Any
    """[Q]: of logits"""
    columns: Any
    """[Q / CHUNK, D, CHUNK]: queries"""
    corrections: Any
    """[Q / CHUNK, TILE_ROWS, CHUNK]: of logits"""
    logits: Any
    """[Q, TILE_ROWS]"""
    tile: Any
    """TILE_ROWS rows of int16"""
    weights: Any
    """[Q, TILE_ROWS] int16"""
    found: Any
    """[Q, 4], see `row_shares`"""
    scales: Any
    """[B + TILE_ROWS]: of values"""
    zeros: Any
    sums: Any
    """[Q, D], in the order of `accumulated_channels`"""
    middles: Any
    """[Q]: sums that all channels share"""
    extras: Any
    """[Q / CHUNK, D, CHUNK]: sums of what outliers add"""


DESK_FIELDS = len(Desk._fields)
NO_LEVELS = Levels(_ZERO, _ZERO), Levels(_ZERO, _ZERO)


@njit(**INLINE)
def is_short(layout: Any, half: Any) -> Any:
    """Whether the functions here attend blocks of a layout, of which `half` pairs of channels are rotated."""
    dim = layout.head_dim
    return (
        HAS_PAIR_DOTS
        and (dim == 64 or dim == UNIT)
        and layout.width == dim
        and (2 * half == dim or half == 0)
    )


@njit(**SERIAL)
def short_angles(layout: Any, cos: Any, sin: Any) -> Any:
    """Angles [B, rd / 2] of the offsets in a block as int16 planes [VECTORS, B + spare, D / 4]; empty without use."""
    rows, half, dim = cos.shape[0], cos.shape[1], layout.head_dim
    has_use = is_short(layout, half) and half > 0
    planes = np.empty((VECTORS, rows + _SPARE_ROWS if has_use else 0, dim // 4), np.int16)
    size = np.int64(planes.shape[1] * planes.shape[2] * 2)
    if HAS_PAIR_DOTS:
        if has_use and dim == UNIT:
            prepare_angles_128(cos.ctypes.data, sin.ctypes.data, rows, planes.ctypes.data, size)
        elif has_use:
            prepare_angles_64(cos.ctypes.data, sin.ctypes.data, rows, planes.ctypes.data, size)
    return planes


@njit(**SERIAL)
def desk_sizes(layout: Any, group: Any, sizes: Any) -> None:
    """Bytes of each field of a Desk."""
    dim, size, queries = np.int64(layout.head_dim), np.int64(layout.block_size), -(-group // CHUNK) * CHUNK
    sizes[0] = sizes[1] = VECTOR_BYTES
    sizes[2], sizes[3], sizes[4] = 2 * VECTORS * VECTOR_BYTES, 2 * dim, 2 * dim
    sizes[5], sizes[6] = 4 * (layout.capacity + 16), 2 * (layout.capacity + 16)
    sizes[7], sizes[8] = queries * UNIT_BYTES, 4 * queries
    sizes[9], sizes[10] = 4 * queries * dim, 4 * queries * TILE_ROWS
    sizes[11], sizes[12] = 4 * queries * TILE_ROWS, 2 * TILE_ROWS * dim
    sizes[13], sizes[14] = 2 * queries * TILE_ROWS, 16 * queries
    sizes[15] = sizes[16] = 4 * (size + TILE_ROWS)
    sizes[17], sizes[18], sizes[19] = 4 * queries * dim, 4 * queries, 4 * queries * dim


@njit(**INLINE)
def desk_at(places: Any) -> Any:
    """The Desk whose fields lie at `places`."""
    return Desk(
        places[0], places[1], places[2], places[3], places[4], places[5], places[6], places[7], places[8], places[9],
        places[10], places[11], places[12], places[13], places[14], places[15], places[16], places[17], places[18],
        places[19],
    )  # fmt: skip


@njit(**SERIAL)
def begin_head(desk: Any, layout: Any, tables: Any, group: Any) -> Any:
    """Clears sums and makes the tables of levels; returns those of keys and of values."""
    vectors = -(-group // CHUNK) * CHUNK * layout.head_dim // 16
    clear_row(desk.sums, vectors)
    clear_row(desk.extras, vectors)
    for m in range(group):
        store_float(desk.middles + 4 * m, _ZERO)
    middle, span = prepare_levels(tables.key_levels, layout.bits, desk.key_table)
    other_middle, other_span = prepare_levels(tables.value_levels, layout.bits, desk.value_table)
    return Levels(middle, span), Levels(other_middle, other_span)


@njit(**INLINE)
def end_head(desk: Any, layout: Any, group: Any, out: Any) -> None:
    """Adds all that was summed here to float32 [group, D] at an address."""
    dim = np.int64(layout.head_dim)
    for m in range(group):
        at, middle = 4 * m * dim, load_float(desk.middles + 4 * m)
        extras = desk.extras + 4 * (m // CHUNK * CHUNK) * dim
        if dim == UNIT:
            add_summed_128(desk.sums + at, extras, m % CHUNK, middle, out + at)
        else:
            add_summed_64(desk.sums + at, extras, m % CHUNK, middle, out + at)


@njit(**INLINE)
def scale_sums(desk: Any, m: Any, dim: Any, factor: Any, has_outliers: Any) -> None:
    """Scales what has been summed of query m."""
    scale_row(desk.sums + 4 * m * dim, dim // 16, factor)
    place = desk.middles + 4 * m
    store_float(place, load_float(place) * factor)
    if has_outliers:
        scale_column(desk.extras + 4 * (m // CHUNK * CHUNK) * dim, dim // 4, m % CHUNK, factor)


@njit(**INLINE)
def key_one(layout: Any) -> Any:
    """The int16 that stands for the range of a key."""
    return np.float32(MOST_KEY / OUTLIER_RANGES) if layout.capacity else np.float32(MOST_KEY)


@njit(**INLINE)
def prepare_keys(desk: Any, layout: Any, keys: Any, levels: Any) -> None:
    """Scales, zeros and ranges of a block's keys, or of a layer's."""
    one = key_one(layout)
    if layout.head_dim == UNIT:
        prepare_keys_128(
            keys.scale, keys.zero, levels.middle, levels.span, one, desk.operands, desk.ranges, desk.shares
        )  # fmt: skip
    else:
        prepare_keys_64(
            keys.scale, keys.zero, levels.middle, levels.span, one, desk.operands, desk.ranges, desk.shares
        )  # fmt: skip


@njit(**INLINE)
def prepare_outliers(desk: Any, layout: Any, keys: Any, begin: Any) -> Any:
    """The int16 of a block's outliers of keys, for tiles from row `begin` on; whether some are too large for it."""
    if layout.capacity == 0:
        return False
    places, exact, count = keys.places, keys.places + 2 * layout.capacity, keys.num_outliers
    if layout.head_dim == UNIT:
        return prepare_outliers_128(places, exact, count, begin, desk.shares, desk.offsets, desk.shorts)
    return prepare_outliers_64(places, exact, count, begin, desk.shares, desk.offsets, desk.shorts)


@njit(**INLINE)
def prepare_queries(desk: Any, layout: Any, rotated: Any, group: Any, rotates: Any) -> None:
    """The int16 of a group of float32 queries [group, D], and their columns for outliers."""
    dim, more = np.int64(layout.head_dim), _ONE / ((_UNROTATED if rotates else _ONE) * key_one(layout))
    for m in range(group):
        query, out = rotated + 4 * m * dim, desk.queries + m * UNIT_BYTES
        if dim == UNIT:
            factor = prepare_query_128(query, desk.ranges, out)
        else:
            factor = prepare_query_64(query, desk.ranges, out)
        store_float(desk.factors + 4 * m, factor * more)
    if layout.capacity:
        for m in range(0, group, CHUNK):
            at = 4 * m * dim
            if dim == UNIT:
                transpose_128(rotated + at, desk.columns + at)
            else:
                transpose_64(rotated + at, desk.columns + at)


@njit(**INLINE)
def prepare_values(desk: Any, values: Any, begin: Any, end: Any) -> None:
    """Scales and zeros of value rows [begin, end), and zeros behind them."""
    for part, out in ((values.scale, desk.scales), (values.zero, desk.zeros)):
        whole = (end - begin) // 16 * 16
        widen_rows(part + 2 * begin, whole, out + 4 * begin)
        for t in range(begin + whole, end):
            store_float(out + 4 * t, load_half(part + 2 * t))
        for t in range(end, end + TILE_ROWS):
            store_float(out + 4 * t, _ZERO)
