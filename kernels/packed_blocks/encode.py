"""Packs whole blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moorage.kernels.addresses import uncounted
from moorage.kernels.checks import FLOAT32, STORAGE, UINT8, check_array, check_ids
from moorage.kernels.compiling import njit
from moorage.kernels.half import NOT_FINITE, largest, no_bits, widen
from moorage.kernels.numba_flags import num_workers
from moorage.kernels.packed_blocks import outliers
from moorage.kernels.packed_blocks.codes import EXACT, code_levels, code_uniform, pack_row
from moorage.kernels.packed_blocks.feedback import code_with_feedback
from moorage.kernels.packed_blocks.layout import PackedLayout
from moorage.kernels.packed_blocks.ranges import HIDDEN, channel_ranges, to_statistics, token_ranges
from moorage.kernels.packed_blocks.tables import MOST, LayerTables
from moorage.kernels.simd_lanes import LANES
from moorage.kernels.thread_team import run_units, team_of, unit_call

HALF = STORAGE[:1]
_COST = 8
"""Bytes that are copied in the time in which one is packed."""
_ONE, _LARGE = np.float32(1), np.float32(MOST)
_FINITE = int(NOT_FINITE[np.dtype(np.uint16)])


def encode_blocks(
    layout: PackedLayout,
    tables: LayerTables,
    blocks: NDArray[np.uint16],
    stored: NDArray[np.uint8],
    pages: NDArray[np.int32],
) -> bool:
    """Packs `blocks` [n, 2, Hkv, B, D], the bits of fp16, into stored[pages], [P, block_bytes]; pages differ.

    False where an element is not finite; then the pages hold anything. Raises ValueError if the arrays do not fit.
    """
    shape = 2, layout.num_kv_heads, layout.block_size, layout.head_dim
    check_array("blocks", blocks, HALF, (len(pages), *shape))
    check_array("stored", stored, UINT8, (None, layout.block_bytes))
    check_ids("pages", pages, len(stored))
    check_array("key_scale", tables.key_scale, FLOAT32, (layout.num_kv_heads, layout.width))
    reach = layout.head_dim if tables.key_feedback.shape[1] else 0
    check_array("key_feedback", tables.key_feedback, FLOAT32, (layout.num_kv_heads, reach, reach))
    team = team_of(num_workers(_COST * blocks.nbytes))
    return bool(_encode(team, layout, tables, blocks, stored, pages))


@njit(**EXACT)
def _encode(team: Any, layout: Any, tables: Any, blocks: Any, stored: Any, pages: Any) -> Any:
    found = np.zeros(len(pages) + 1, np.int64)
    arguments = (layout, tables, blocks.reshape(-1), stored, pages, found)
    run_units(team, len(pages), *unit_call(_encode_block, arguments))
    return found.max() < _FINITE


@njit(**EXACT)
def _encode_block(
    unit: Any, layout: Any, tables: Any, source: Any, stored: Any, pages: Any, largest_bits: Any
) -> None:  # fmt: skip
    packed = stored[pages[unit]]
    halves = packed.view(np.uint16)
    size = layout.block_size * layout.head_dim
    keys = unit * 2 * layout.num_kv_heads * size
    values = keys + layout.num_kv_heads * size
    most = no_bits(source[0])
    for i in range(np.uint64(keys), np.uint64(keys + 2 * layout.num_kv_heads * size)):
        most = largest(most, source[i])
    largest_bits[unit] = np.int64(most)
    if np.int64(most) >= _FINITE:
        return
    packed[:] = 0  # also what lies between the parts, so that equal blocks have equal bytes
    numbers = np.empty(layout.block_size * layout.width, np.float32)
    rows = uncounted(numbers)
    for head in range(layout.num_kv_heads):
        _encode_keys(layout, tables, head, source, keys + head * size, rows, packed, halves)
    if layout.value_stats_stride:
        for head in range(layout.num_kv_heads):
            _encode_values(layout, tables, head, 1, source, values + head * size, rows, packed, halves)
    else:
        _encode_values(layout, tables, 0, layout.num_kv_heads, source, values, rows, packed, halves)
    numbers[0] = 0  # until here it is held


@njit(**EXACT)
def _widen_rows(layout: Any, source: Any, at: Any, rows: Any) -> None:
    """A head's stored rows as float32 [B, width], padded with HIDDEN."""
    dim, width = np.uint64(layout.head_dim), np.uint64(layout.width)
    for t in range(np.uint64(layout.block_size)):
        # Unsigned: else each index is asked whether it is negative.
        first, into = np.uint64(at) + t * dim, t * width
        for d in range(dim):
            rows[into + d] = widen(source[first + d])
        for d in range(dim, width):
            rows[into + d] = HIDDEN


@njit(**EXACT)
def _encode_keys(
    layout: Any, tables: Any, head: Any, source: Any, at: Any, rows: Any, packed: Any, halves: Any
) -> None:
    width, block_size = layout.width, layout.block_size
    base = head * layout.head_bytes
    scale, zero, inverse = (
        np.empty(width, np.float32),
        np.empty(width, np.float32),
        np.empty(width, np.float32),
    )
    _widen_rows(layout, source, at, rows)
    listed, count = 0, 0
    if layout.capacity:
        listed = outliers.list_of(layout, head)
        count = _list_keys(layout, tables, head, source, at, rows, halves, listed)
        outliers.hide_listed(rows, (block_size, layout.head_dim, width), halves, listed, count)
    if layout.key_stats < 0:
        for d in range(width):
            scale[d], zero[d] = tables.key_scale[head, d], tables.key_zero[head, d]
    else:
        channel_ranges(layout, rows, scale, zero)
        to_statistics(layout, scale, zero, width, halves, (base + layout.key_stats) // 2)
    for d in range(width):
        inverse[d] = _ONE / scale[d] if scale[d] > 0 else np.float32(0)
    if tables.key_feedback.shape[1]:
        codes, apart = np.empty(block_size * width, np.uint8), halves[listed : listed + count]
        code_with_feedback(
            layout, tables, head, source, at, rows, apart, scale, zero, inverse, uncounted(codes)
        )
        _pack_rows(layout, uncounted(codes), packed, base + layout.key_codes)
        codes[0] = 0  # until here it is held
        return
    for t in range(block_size):
        for d in range(width):
            rows[t * width + d] = (rows[t * width + d] - zero[d]) * inverse[d]
    _code_rows(layout, tables.key_limits, rows, packed, base + layout.key_codes)


@njit(**EXACT)
def _list_keys(
    layout: Any, tables: Any, head: Any, source: Any, at: Any, rows: Any, halves: Any, listed: Any
) -> Any:
    """Chooses the outliers of a head's keys, and begins its list at `halves[listed]` with them; returns how many."""
    dim, width, block_size = layout.head_dim, layout.width, layout.block_size
    far, far_places = (
        np.empty(block_size * dim + LANES, np.float32),
        np.empty(block_size * dim + LANES, np.int32),
    )
    one_row, inverse = np.zeros(width, np.float32), np.empty(width, np.float32)
    excess, places, row = uncounted(far), uncounted(far_places), uncounted(one_row)
    sizes = block_size, dim, width
    if layout.key_stats < 0:
        for d in range(width):
            scale = tables.key_scale[head, d]
            inverse[d] = _ONE / scale if scale > 0 else _LARGE
        low, high = tables.key_low[head], tables.key_high[head]
        found = outliers.beyond_candidates(rows, sizes, low, high, inverse, excess, places, row)
    else:
        sums, squares, mean = np.zeros(dim), np.zeros(dim), np.empty(width, np.float32)
        outliers.add_channel_sums(source, at, block_size, dim, sums, squares)
        outliers.to_deviations(sums, squares, block_size, dim, mean, inverse)
        found = outliers.channel_candidates(rows, sizes, mean, inverse, excess, places, row)
    found = outliers.keep_largest(excess, places, found, layout.key_capacity)
    halves[listed - 2] = found
    outliers.write_list(source, at, places, found, 0, layout.capacity, halves, listed)
    far[0], far_places[0], one_row[0] = 0, 0, 0  # until here they are held
    return found


@njit(**EXACT)
def _hide_values(layout: Any, head: Any, halves: Any, rows: Any) -> None:
    """Hides the outliers among a head's values, which are listed."""
    listed, sizes = outliers.list_of(layout, head), (layout.block_size, layout.head_dim, layout.width)
    keys, values = np.int64(halves[listed - 2]), np.int64(halves[listed - 1])
    outliers.hide_listed(rows, sizes, halves, listed + keys, values)


@njit(**EXACT)
def _encode_values(
    layout: Any,
    tables: Any,
    first: Any,
    heads: Any,
    source: Any,
    at: Any,
    rows: Any,
    packed: Any,
    halves: Any,
) -> None:
    """The values of heads [first, first + heads), which share their statistics."""
    width, block_size = layout.width, layout.block_size
    size = block_size * layout.head_dim
    low, high = np.full(block_size, np.inf, np.float32), np.full(block_size, -np.inf, np.float32)
    if layout.capacity:
        _list_values(layout, first, heads, source, at, rows, halves)
    for i in range(heads):
        _widen_rows(layout, source, at + i * size, rows)
        if layout.capacity:
            _hide_values(layout, first + i, halves, rows)
        token_ranges(rows, block_size, width, low, high)
    into = (layout.value_stats + first * layout.value_stats_stride) // 2
    to_statistics(layout, low, high, block_size, halves, into)
    scale, zero = low, high
    for i in range(heads):
        base = (first + i) * layout.head_bytes
        if heads > 1:
            _widen_rows(layout, source, at + i * size, rows)
            _hide_values(layout, first + i, halves, rows)
        for t in range(block_size):
            middle, inverse = zero[t], _ONE / scale[t] if scale[t] > 0 else np.float32(0)
            for d in range(width):
                rows[t * width + d] = (rows[t * width + d] - middle) * inverse
        _code_rows(layout, tables.value_limits, rows, packed, base + layout.value_codes)


@njit(**EXACT)
def _list_values(layout: Any, first: Any, heads: Any, source: Any, at: Any, rows: Any, halves: Any) -> None:
    """Chooses the outliers of each head's values, and adds them to the lists, as far as keys have left places."""
    dim, width, block_size = layout.head_dim, layout.width, layout.block_size
    size = block_size * dim
    far, far_places = np.empty(size + LANES, np.float32), np.empty(size + LANES, np.int32)
    one_row, mean, inverse = (
        np.zeros(width, np.float32),
        np.empty(block_size, np.float32),
        np.empty(block_size, np.float32),
    )
    excess, places, row = uncounted(far), uncounted(far_places), uncounted(one_row)
    sums, squares = np.zeros(block_size), np.zeros(block_size)
    for i in range(heads):
        outliers.add_row_sums(source, at + i * size, block_size, dim, sums, squares)
    outliers.to_deviations(sums, squares, heads * dim, block_size, mean, inverse)
    for i in range(heads):
        _widen_rows(layout, source, at + i * size, rows)
        found = outliers.row_candidates(rows, (block_size, dim, width), mean, inverse, excess, places, row)
        listed = outliers.list_of(layout, first + i)
        keys = np.int64(halves[listed - 2])
        found = outliers.keep_largest(excess, places, found, layout.capacity - keys)
        halves[listed - 1] = found
        outliers.write_list(source, at + i * size, places, found, keys, layout.capacity, halves, listed)
    far[0], far_places[0], one_row[0] = 0, 0, 0  # until here they are held


@njit(**EXACT)
def _code_rows(layout: Any, limits: Any, normal: Any, packed: Any, at: Any) -> None:
    """The codes of normalised rows [B, width] as bytes from `packed[at]` on."""
    width, bits = layout.width, layout.bits
    codes = np.empty(layout.block_size * width, np.uint8)
    if layout.uniform:
        code_uniform(normal, len(codes), (1 << bits) - 1, codes)
    else:
        code_levels(normal, len(codes), bits, limits, codes)
    _pack_rows(layout, uncounted(codes), packed, at)
    codes[0] = 0  # until here it is held


@njit(**EXACT)
def _pack_rows(layout: Any, codes: Any, packed: Any, at: Any) -> None:
    """Rows of codes [B, width] as bytes from `packed[at]` on."""
    for t in range(layout.block_size):
        pack_row(codes, t * layout.width, layout.bits, layout.width, packed, at + t * layout.row_bytes)
