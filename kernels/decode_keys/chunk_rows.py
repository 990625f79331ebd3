"""The rows of a chunk of selected keys: in memory as they are stored, or unpacked from their blocks."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.core.imputils import impl_ret_borrowed
from numba.extending import intrinsic

from moorage.kernels.addresses import matrix_at
from moorage.kernels.compiling import njit
from moorage.kernels.decode_layer.packed import memory_of, page_elements, raw_page, raw_rows_of
from moorage.kernels.key_select.lanes import prefetch_at
from moorage.kernels.numba_flags import INLINE, SERIAL
from moorage.kernels.packed_blocks.unpack import (
    about_before,
    outliers_before,
    part_of_values,
    place_keys,
    read_key_statistics,
    unpack_keys,
    unpack_values,
)
from moorage.kernels.packed_blocks.unpack_tiles import widen_rows
from moorage.kernels.simd import LINE_BYTES

CHUNK = 128
"""Keys that one thread attends, a multiple of TILE and LANES."""
AHEAD = 32
"""Rows that are asked of the memory before they are needed."""


class ChunkRows(NamedTuple):
    """Keys and values of the keys of a chunk."""

    like: Any
    """An array of the type of the rows, which holds them where they are unpacked."""
    places: Any
    """[2, n]: the addresses of keys and of values."""
    ahead: Any
    """How many rows before their use a row is asked of the memory; 0 where they need not be."""


@njit(**SERIAL)
def key_steps(packed: Any, shape: Any, kv_head: Any) -> Any:
    """Elements from a block to the first key of a head, and from one key to the next; 0 where blocks are packed."""
    if packed is None:
        return kv_head * shape.block_size * shape.head_dim, shape.head_dim
    return np.int64(0), np.int64(0)


@njit(**SERIAL)
def row_at(address: Any, dim: Any, like: Any) -> Any:
    """The row of `dim` elements at an address."""
    return matrix_at(address, 1, dim, like)[0]


@intrinsic
def _rows_like(_typing: Any, packed: Any, memory: Any, room: Any) -> Any:
    """The array that rows lie in: `memory` where blocks are not packed, which is known when this is compiled."""
    chosen = 1 if isinstance(packed, types.NoneType) else 2

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return impl_ret_borrowed(context, builder, signature.return_type, args[chosen])

    return (memory, room)[chosen - 1](packed, memory, room), build


@njit(**SERIAL)
def rows_of_chunk(
    packed: Any, i: Any, kv_head: Any, low: Any, high: Any, selected: Any, layer: Any
) -> Any:  # fmt: skip
    """The ChunkRows of the selected keys [low, high) of a head of session i."""
    shape, memory = layer.shape, layer.memory
    rows, dim = selected.rows[i * shape.num_kv_heads + kv_head], np.int64(shape.head_dim)
    places = np.empty((2, high - low), np.int64)
    room = np.empty(0 if packed is None else 2 * CHUNK * dim, np.float32)
    like = _rows_like(packed, memory, room)
    if packed is None:
        item, start = memory.itemsize, memory.ctypes.data
        to_values = shape.num_kv_heads * shape.block_size * dim
        for t in range(high - low):
            places[0, t] = start + rows[low + t] * item
            places[1, t] = start + (rows[low + t] + to_values) * item
        return ChunkRows(like, places, np.int64(AHEAD))
    for t in range(high - low):
        places[0, t] = room.ctypes.data + 4 * dim * t
        places[1, t] = places[0, t] + 4 * dim * CHUNK
    _unpack_rows(packed, i, kv_head, low, high, selected, layer, places)
    return ChunkRows(like, places, np.int64(0))


@njit(**SERIAL)
def _unpack_rows(
    packed: Any, i: Any, kv_head: Any, low: Any, high: Any, selected: Any, layer: Any, places: Any
) -> None:  # fmt: skip
    """Writes keys and values [low, high) of a head of session i to the addresses `places` as float32."""
    layout, tables, memory = packed.layer.layout, packed.layer.tables, layer.memory
    at, dim, size = (
        i * layer.shape.num_kv_heads + kv_head,
        np.int64(layout.head_dim),
        np.int64(layout.block_size),
    )
    blocks, in_block, starts = selected.blocks[at], selected.places[at], selected.rows[at]
    start, own, none = memory.ctypes.data, layer.batch.position[i] // size, np.int64(0)
    statistics = np.empty(2 * layout.width, np.float32)
    room, one, known = statistics.ctypes.data, np.int64(1), np.int64(0)
    for t in range(low, min(high, low + 2 * AHEAD)):
        _ask_counts(layout, start + 2 * starts[t], kv_head)
    for t in range(low, min(high, low + AHEAD)):
        _ask_row(layout, tables, start + 2 * starts[t], kv_head, np.int64(in_block[t]))
    for t in range(low, high):
        _ask_counts(layout, start + 2 * starts[min(t + 2 * AHEAD, high - 1)], kv_head)
        coming = min(t + AHEAD, high - 1)
        _ask_row(layout, tables, start + 2 * starts[coming], kv_head, np.int64(in_block[coming]))
        block, row = start + 2 * starts[t], np.int64(in_block[t])
        page, raw_end = raw_rows_of(packed, np.int64(blocks[t]), own, size)
        if row < raw_end:
            raw, to_values = _raw_row(packed, i, kv_head, np.int64(blocks[t]), page, row, layer)
            widen_rows(raw, dim, places[0, t - low])
            widen_rows(raw + to_values, dim, places[1, t - low])
            continue
        if block != known:
            read_key_statistics(layout, block, kv_head, room)
            known = block
        keys = place_keys(layout, tables, block, kv_head, room)
        before = outliers_before(layout, keys, row)
        unpack_keys(layout, keys, row, one, before, places[0, t - low], none)
        values = part_of_values(layout, tables, block, kv_head)
        before = outliers_before(layout, values, row)
        unpack_values(layout, values, row, one, before, places[1, t - low], none)
    statistics[0] = 0  # until here it is held


@njit(**SERIAL)
def _raw_row(packed: Any, i: Any, kv_head: Any, block: Any, page: Any, row: Any, layer: Any) -> Any:
    """(address of a key that lies in a page of rows, bytes from it to its value)."""
    shape, batch, first = layer.shape, layer.batch, layer.first
    number, place = divmod(row, np.int64(packed.raw_rows))
    m = memory_of(block, i, shape, batch, first)
    at = raw_page(m, i, page + number, batch, first, page_elements(packed, shape))
    at += (kv_head * packed.raw_rows + place) * shape.head_dim
    return layer.memory.ctypes.data + 2 * at, 2 * shape.num_kv_heads * packed.raw_rows * shape.head_dim


@njit(**INLINE)
def _ask_counts(layout: Any, block: Any, kv_head: Any) -> None:
    """Asks for the numbers of outliers of a head of the block at an address, which `_ask_row` reads."""
    if layout.capacity:
        prefetch_at(block + kv_head * layout.head_bytes + layout.outliers)


@njit(**SERIAL)
def _ask_row(layout: Any, tables: Any, block: Any, kv_head: Any, row: Any) -> None:
    """Asks for what a row of a head of the block at an address is unpacked from."""
    head, at = block + kv_head * layout.head_bytes, row * layout.row_bytes
    for codes in (head + layout.key_codes + at, head + layout.value_codes + at):
        for line in range(codes // LINE_BYTES, (codes + layout.row_bytes - 1) // LINE_BYTES + 1):
            prefetch_at(line * LINE_BYTES)
    if layout.key_stats >= 0:
        for line in range(0, 4 * layout.width, LINE_BYTES):
            prefetch_at(head + layout.key_stats + line)
    values = part_of_values(layout, tables, block, kv_head)
    prefetch_at(values.scale + 2 * row)
    prefetch_at(values.zero + 2 * row)
    if layout.capacity:
        for part in (place_keys(layout, tables, block, kv_head, block), values):
            place = part.places + 2 * about_before(layout, part, row)
            prefetch_at(place)
            prefetch_at(place + 2 * layout.capacity)
