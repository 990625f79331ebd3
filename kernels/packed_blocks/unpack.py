"""Tiles of rows of packed blocks as float32, which stay in the L1 cache while attention reads them.

Whatever is not a size is an address in bytes: each array that a compiled function is given costs time in every tile.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from moorage.kernels.addresses import address_of
from moorage.kernels.compiling import njit
from moorage.kernels.key_select.lanes import store_float
from moorage.kernels.numba_flags import INLINE, SERIAL
from moorage.kernels.packed_blocks.layout import PackedLayout
from moorage.kernels.packed_blocks.masks import LINE_SHORTS, shorts_below
from moorage.kernels.packed_blocks.tables import LayerTables
from moorage.kernels.packed_blocks.unpack_plain import load_half, load_short, unpack_plainly
from moorage.kernels.packed_blocks.unpack_tiles import (
    HAS_LOOKUP,
    unpack_keys_2,
    unpack_keys_3,
    unpack_keys_4,
    unpack_keys_8,
    unpack_values_2,
    unpack_values_3,
    unpack_values_4,
    unpack_values_8,
    widen_rows,
)
from moorage.kernels.simd import LINE_BYTES


class Part(NamedTuple):
    """The keys or the values of one head of a packed block."""

    codes: Any
    """The first row of codes."""
    levels: Any
    """16 levels."""
    scale: Any
    """Of keys, float32 for each channel; of values, fp16 for each row."""
    zero: Any
    """As `scale`."""
    places: Any
    """The places of its outliers; meaningless where it has none. Their exact numbers lie `capacity` further."""
    num_outliers: Any


class Tables(NamedTuple):
    """Where the tables of a layer lie: addresses, so that nothing is counted for each block that is read."""

    key_levels: int
    value_levels: int
    key_scale: int
    key_zero: int


class PackedLayer(NamedTuple):
    """What compiled code needs to read the packed blocks of a layer."""

    layout: PackedLayout
    tables: Tables


def packed_layer(layout: PackedLayout, tables: LayerTables) -> PackedLayer:
    """Blocks of a layout with the tables of their layer, which the caller holds as long as these are used."""
    arrays = tables.key_levels, tables.value_levels, tables.key_scale, tables.key_zero
    return PackedLayer(layout, Tables(*(address_of(array) for array in arrays)))


@njit(**INLINE)
def part_of_keys(layout: Any, tables: Any, block: Any, kv_head: Any, room: Any) -> Any:
    """The keys of a head of the block at an address; `room` is for the statistics of 2 * width channels."""
    read_key_statistics(layout, block, kv_head, room)
    return place_keys(layout, tables, block, kv_head, room)


@njit(**INLINE)
def read_key_statistics(layout: Any, block: Any, kv_head: Any, room: Any) -> None:
    """Writes the statistics of a head's keys, where its blocks have them, to the `room` of `part_of_keys`."""
    if layout.key_stats >= 0:
        widen_rows(block + kv_head * layout.head_bytes + layout.key_stats, np.int64(2 * layout.width), room)


@njit(**INLINE)
def place_keys(layout: Any, tables: Any, block: Any, kv_head: Any, room: Any) -> Any:
    """`part_of_keys` with whatever `room` holds."""
    head, width = block + kv_head * layout.head_bytes, layout.width
    scale, zero = room, room + 4 * width
    if layout.key_stats < 0:
        scale, zero = tables.key_scale + 4 * kv_head * width, tables.key_zero + 4 * kv_head * width
    places, keys, _ = _outliers_of(layout, head)
    return Part(head + layout.key_codes, tables.key_levels, scale, zero, places, keys)


@njit(**INLINE)
def part_of_values(layout: Any, tables: Any, block: Any, kv_head: Any) -> Any:
    """The values of a head of the block at an address."""
    head = block + kv_head * layout.head_bytes
    scale = block + layout.value_stats + kv_head * layout.value_stats_stride
    zero = scale + 2 * layout.block_size
    places, keys, values = _outliers_of(layout, head)
    return Part(head + layout.value_codes, tables.value_levels, scale, zero, places + 2 * keys, values)


@njit(**INLINE)
def _outliers_of(layout: Any, head: Any) -> Any:
    """The list of the head at an address: where places begin, the number of keys, and of values that follow them."""
    if layout.capacity == 0:
        return head, np.int64(0), np.int64(0)
    listed = head + layout.outliers
    return listed + 4, np.int64(load_short(listed)), np.int64(load_short(listed + 2))


@njit(**INLINE)
def about_before(layout: Any, part: Any, row: Any) -> Any:
    """How many outliers of a part lie in rows before `row` if rows have equally many."""
    return part.num_outliers * row // layout.block_size


@njit(**SERIAL)
def outliers_before(layout: Any, part: Any, row: Any) -> Any:
    """How many outliers of a part lie in rows before `row`."""
    if row == 0 or part.num_outliers == 0:
        return np.int64(0)
    # In lines of memory, of which nearly always one is read: the one where the number is about to be found.
    first = part.places // LINE_BYTES * LINE_BYTES
    begin, limit = (part.places - first) // 2, row * layout.head_dim
    end = begin + part.num_outliers
    last = (end - 1) // LINE_SHORTS
    line = min((begin + about_before(layout, part, row)) // LINE_SHORTS, last)
    low, high, below = _below_in_line(first, line, begin, end, limit)
    while below == high - low and line < last:
        line += 1
        low, high, below = _below_in_line(first, line, begin, end, limit)
    while below == 0 and line > 0:
        line -= 1
        low, high, below = _below_in_line(first, line, begin, end, limit)
    return low - begin + below


@njit(**INLINE)
def _below_in_line(first: Any, line: Any, begin: Any, end: Any, limit: Any) -> Any:
    """(low, high, number below a limit) of the places [begin, end), counted from address `first`, in a line."""
    start = line * LINE_SHORTS
    low, high = max(begin, start), min(end, start + LINE_SHORTS)
    return low, high, shorts_below(first + line * LINE_BYTES, low - start, high - start, limit)


@njit(**INLINE)
def unpack_keys(layout: Any, part: Any, row: Any, count: Any, first: Any, out: Any, ahead: Any) -> Any:
    """Unpacks rows [row, row + count) to `out`, [count, D]; `first` of the outliers lie before them.

    What lies `ahead` bytes after each row is asked for. Returns how many outliers lie before the rows that follow.
    """
    bits, dim, half, plane = layout.bits, layout.head_dim, layout.width // 2, layout.high_plane
    size, (codes, levels, scale, zero, _, _) = layout.row_bytes, part
    codes += row * size
    if not HAS_LOOKUP:
        unpack_plainly(layout, codes, count, levels, scale, zero, False, out)
    elif bits == 8:
        unpack_keys_8(codes, size, plane, count, dim, half, levels, scale, zero, out, ahead)
    elif bits == 4:
        unpack_keys_4(codes, size, plane, count, dim, half, levels, scale, zero, out, ahead)
    elif bits == 3:
        unpack_keys_3(codes, size, plane, count, dim, half, levels, scale, zero, out, ahead)
    else:
        unpack_keys_2(codes, size, plane, count, dim, half, levels, scale, zero, out, ahead)
    return _put_outliers(layout, part, row, count, first, out)


@njit(**INLINE)
def unpack_values(layout: Any, part: Any, row: Any, count: Any, first: Any, out: Any, ahead: Any) -> Any:
    """`unpack_keys` of values."""
    bits, dim, half, plane = layout.bits, layout.head_dim, layout.width // 2, layout.high_plane
    size, (codes, levels, scale, zero, _, _) = layout.row_bytes, part
    codes, scale, zero = codes + row * size, scale + 2 * row, zero + 2 * row
    if not HAS_LOOKUP:
        unpack_plainly(layout, codes, count, levels, scale, zero, True, out)
    elif bits == 8:
        unpack_values_8(codes, size, plane, count, dim, half, levels, scale, zero, out, ahead)
    elif bits == 4:
        unpack_values_4(codes, size, plane, count, dim, half, levels, scale, zero, out, ahead)
    elif bits == 3:
        unpack_values_3(codes, size, plane, count, dim, half, levels, scale, zero, out, ahead)
    else:
        unpack_values_2(codes, size, plane, count, dim, half, levels, scale, zero, out, ahead)
    return _put_outliers(layout, part, row, count, first, out)


@njit(**INLINE)
def _put_outliers(layout: Any, part: Any, row: Any, count: Any, first: Any, out: Any) -> Any:
    """Puts the outliers of rows [row, row + count), from number `first` of a part on, in their places."""
    low, high = row * layout.head_dim, (row + count) * layout.head_dim
    exact = part.places + 2 * layout.capacity
    while first < part.num_outliers:
        place = np.int64(load_short(part.places + 2 * first))
        if place >= high:
            break
        store_float(out + 4 * (place - low), load_half(exact + 2 * first))
        first += 1
    return first
