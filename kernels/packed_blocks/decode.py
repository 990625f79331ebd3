"""Unpacks whole blocks to fp16."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moorage.kernels.checks import FLOAT32, INT32, STORAGE, UINT8, check_array, check_ids
from moorage.kernels.compiling import njit
from moorage.kernels.half import narrow, widen
from moorage.kernels.numba_flags import num_workers
from moorage.kernels.packed_blocks.codes import EXACT, unpack_row
from moorage.kernels.packed_blocks.layout import PackedLayout
from moorage.kernels.packed_blocks.outliers import list_of
from moorage.kernels.packed_blocks.tables import MOST, LayerTables
from moorage.kernels.thread_team import run_units, team_of, unit_call

_MOST = np.float32(MOST)
_COST = 4
"""Bytes that are copied in the time in which one is unpacked."""


def decode_blocks(
    layout: PackedLayout,
    tables: LayerTables,
    stored: NDArray[np.uint8],
    pages: NDArray[np.int32],
    out: NDArray[np.uint16],
    slots: NDArray[np.int32],
) -> None:
    """Unpacks stored[pages[i]], [P, block_bytes], into out[slots[i]], [S, 2, Hkv, B, D], as bits of fp16.

    Slots differ from each other. Numbers beyond the range of fp16 become its largest.
    Raises ValueError if the arrays do not fit.
    """
    shape = 2, layout.num_kv_heads, layout.block_size, layout.head_dim
    check_array("stored", stored, UINT8, (None, layout.block_bytes))
    check_array("out", out, STORAGE[:1], (None, *shape))
    check_ids("pages", pages, len(stored))
    check_ids("slots", slots, len(out))
    check_array("slots", slots, INT32, pages.shape)
    check_array("key_scale", tables.key_scale, FLOAT32, (layout.num_kv_heads, layout.width))
    team = team_of(num_workers(_COST * len(pages) * out[:1].nbytes))
    _decode(team, layout, tables, stored, pages, out, slots)


@njit(**EXACT)
def _decode(
    team: Any, layout: Any, tables: Any, stored: Any, pages: Any, out: Any, slots: Any
) -> None:  # fmt: skip
    arguments = (layout, tables, stored, pages, out.reshape(-1), slots)
    run_units(team, len(pages), *unit_call(_decode_block, arguments))


@njit(**EXACT)
def _decode_block(
    unit: Any, layout: Any, tables: Any, stored: Any, pages: Any, out: Any, slots: Any
) -> None:  # fmt: skip
    packed = stored[pages[unit]]
    halves = packed.view(np.uint16)
    size = layout.block_size * layout.head_dim
    at = slots[unit] * 2 * layout.num_kv_heads * size
    codes = np.empty(layout.block_size * layout.width, np.uint8)
    for head in range(layout.num_kv_heads):
        _decode_keys(layout, tables, head, packed, halves, codes, out, at + head * size)
    at += layout.num_kv_heads * size
    for head in range(layout.num_kv_heads):
        _decode_values(layout, tables, head, packed, halves, codes, out, at + head * size)


@njit(**EXACT)
def _unpack_rows(layout: Any, packed: Any, at: Any, codes: Any) -> None:
    """All rows before any is read: a vector of codes that are written one by one just before is waited for."""
    for t in range(layout.block_size):
        unpack_row(packed, at + t * layout.row_bytes, layout.bits, layout.width, codes, t * layout.width)


@njit(**EXACT)
def _decode_keys(
    layout: Any, tables: Any, head: Any, packed: Any, halves: Any, codes: Any, out: Any, at: Any
) -> None:
    base, dim = head * layout.head_bytes, layout.head_dim
    scale, zero = np.empty(dim, np.float32), np.empty(dim, np.float32)
    stats = (base + layout.key_stats) // 2
    for d in range(dim):
        if layout.key_stats < 0:
            scale[d], zero[d] = tables.key_scale[head, d], tables.key_zero[head, d]
        else:
            scale[d], zero[d] = widen(halves[stats + d]), widen(halves[stats + layout.width + d])
    levels = tables.key_levels
    _unpack_rows(layout, packed, base + layout.key_codes, codes)
    for t in range(layout.block_size):
        first = np.uint64(t * layout.width)
        into = np.uint64(at + t * dim)  # unsigned: else each index is asked whether it is negative
        if layout.uniform:
            for d in range(np.uint64(dim)):
                out[into + d] = _half(zero[d] + scale[d] * np.float32(codes[first + d]), out[0])
        else:
            for d in range(np.uint64(dim)):
                out[into + d] = _half(zero[d] + scale[d] * levels[codes[first + d]], out[0])
    if layout.capacity:
        listed = list_of(layout, head)
        _put_outliers(halves, listed, np.int64(halves[listed - 2]), layout.capacity, out, at)


@njit(**EXACT)
def _decode_values(
    layout: Any, tables: Any, head: Any, packed: Any, halves: Any, codes: Any, out: Any, at: Any
) -> None:
    base, dim, block_size = head * layout.head_bytes, layout.head_dim, layout.block_size
    stats = (layout.value_stats + head * layout.value_stats_stride) // 2
    levels = tables.value_levels
    _unpack_rows(layout, packed, base + layout.value_codes, codes)
    for t in range(block_size):
        scale, zero = widen(halves[stats + t]), widen(halves[stats + block_size + t])
        first = np.uint64(t * layout.width)
        into = np.uint64(at + t * dim)
        if layout.uniform:
            for d in range(np.uint64(dim)):
                out[into + d] = _half(zero + scale * np.float32(codes[first + d]), out[0])
        else:
            for d in range(np.uint64(dim)):
                out[into + d] = _half(zero + scale * levels[codes[first + d]], out[0])
    if layout.capacity:
        listed = list_of(layout, head)
        begin = listed + np.int64(halves[listed - 2])
        _put_outliers(halves, begin, np.int64(halves[listed - 1]), layout.capacity, out, at)


@njit(**EXACT)
def _half(value: Any, like: Any) -> Any:
    """The bits of an fp16, limited to its range."""
    value = _MOST if value > _MOST else value
    return narrow(-_MOST if value < -_MOST else value, like)


@njit(**EXACT)
def _put_outliers(halves: Any, begin: Any, count: Any, capacity: Any, out: Any, at: Any) -> None:
    for i in range(begin, begin + count):
        out[at + np.int64(halves[i])] = halves[i + capacity]
