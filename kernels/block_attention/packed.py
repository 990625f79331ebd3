"""One KV head of attention over packed blocks: tiles of rows are unpacked, and attended as `head.py` attends them."""

from __future__ import annotations

from typing import Any

import numpy as np

from moorage.kernels.addresses import floats_at
from moorage.kernels.block_attention.head import (
    _LN2,
    _add_values,
    _add_wide_values,
    _weights,
    cap_logits,
    share_sums,
)
from moorage.kernels.block_attention.logits import ROWS, rotate_into_tile, tile_logits
from moorage.kernels.block_attention.short_desk import (
    CHUNK,
    DESK_FIELDS,
    NO_LEVELS,
    begin_head,
    desk_at,
    desk_sizes,
    end_head,
    is_short,
    prepare_keys,
    prepare_outliers,
    prepare_queries,
    prepare_values,
    scale_sums,
)
from moorage.kernels.block_attention.short_rows import TILE_ROWS
from moorage.kernels.block_attention.short_steps import (
    key_logits,
    unpack_key_tile,
    unpack_value_tile,
    weigh_tile,
)
from moorage.kernels.block_attention.short_sums import (
    add_value_outliers,
    correct_logits,
    put_key_outliers,
    weigh_logits,
)
from moorage.kernels.compiling import njit
from moorage.kernels.key_select.lanes import prefetch_at
from moorage.kernels.numba_flags import INLINE, SERIAL
from moorage.kernels.packed_blocks.unpack import (
    outliers_before,
    part_of_keys,
    part_of_values,
    unpack_keys,
    unpack_values,
)
from moorage.kernels.packed_blocks.unpack_tiles import widen_rows
from moorage.kernels.simd import LINE_BYTES
from moorage.kernels.simd_group import WIDE_LANES
from moorage.kernels.simd_words import HAS_PAIR_DOTS
from moorage.kernels.vector_math import exp32


@njit(**SERIAL)
def attend_packed_head(
    query: Any, memory: Any, packed: Any, kv_head: Any, offset: Any, raw_rows: Any, rows: Any, first: Any, last: Any,
    rotations: Any, angles: Any, scale: Any, softcap: Any, out: Any, lse: Any,
) -> None:  # fmt: skip
    """`attend_head` of entries in `memory`, elements of 16 bits, most of which are packed blocks of a PackedLayer.

    offset [n]: the element at which an entry begins. It is a packed block where raw_rows [n] is 0, else a page of so
    many rows of fp16, [K | V][Hkv][raw_rows][D]. `rows` are (begin, end, raw_first), each [n]: an entry attends rows
    [begin, end) of its block, and the first row of a page is row `raw_first` of the block. `angles` are those of
    `short_angles`.
    """
    group, dim = query.shape
    sizes = np.empty(DESK_FIELDS + 8, np.int64)
    desk_sizes(packed.layout, group, sizes)
    padded = -(-group // CHUNK) * CHUNK * dim
    sizes[DESK_FIELDS], sizes[DESK_FIELDS + 1], sizes[DESK_FIELDS + 2] = (
        4 * padded,
        4 * padded,
        4 * ROWS * dim,
    )
    sizes[DESK_FIELDS + 3], sizes[DESK_FIELDS + 4] = 4 * ROWS * dim, 8 * packed.layout.width
    sizes[DESK_FIELDS + 5] = sizes[DESK_FIELDS + 6] = 4 * group
    sizes[DESK_FIELDS + 7] = 4 * group * ROWS
    room = np.empty(np.sum(sizes) // 4 + (len(sizes) + 1) * LINE_BYTES // 4, np.float32)
    # Arrays by address, since compiled code counts the users of others at each use.
    places, at = np.empty(len(sizes), np.int64), room.ctypes.data
    for i in range(len(sizes)):
        places[i] = -(-at // LINE_BYTES) * LINE_BYTES
        at = places[i] + sizes[i]
    desk, n = desk_at(places), DESK_FIELDS
    scaled, rotated = floats_at(places[n], padded), floats_at(places[n + 1], padded)
    tile, turned = floats_at(places[n + 2], ROWS * dim), floats_at(places[n + 3], ROWS * dim)
    logits = floats_at(places[n + 7], group * ROWS)
    for m in range(group):
        for d in range(dim):
            scaled[m * dim + d] = scale * query[m, d]
    peak, total = floats_at(places[n + 5], group), floats_at(places[n + 6], group)
    for m in range(group):
        peak[m], total[m] = -np.inf, 0
    out[:] = 0
    sums, layout = floats_at(out.ctypes.data, out.size), packed.layout
    # HAS_PAIR_DOTS, asked first, keeps a compiler without these instructions from what needs them.
    shorts = is_short(layout, rotations[0].shape[1])
    levels = NO_LEVELS
    if HAS_PAIR_DOTS and shorts:
        levels = begin_head(desk, layout, packed.tables, group)
    _add_entries(
        (scaled, rotated, tile, turned, logits, sums, places[n + 4]), desk, levels, memory.ctypes.data, layout,
        packed.tables, kv_head, offset, raw_rows, rows, first, last, rotations, angles, softcap, peak, total,
    )  # fmt: skip
    if HAS_PAIR_DOTS and shorts:
        end_head(desk, layout, group, sums.ctypes.data)
    share_sums(peak, total, out, lse)
    room[0] = 0  # until here it is held


@njit(**SERIAL)
def _add_entries(
    floats: Any, desk: Any, levels: Any, start: Any, layout: Any, tables: Any, kv_head: Any, offset: Any,
    raw_rows: Any, rows: Any, first: Any, last: Any, rotations: Any, angles: Any, softcap: Any, peak: Any, total: Any,
) -> None:  # fmt: skip
    """Adds entries [first, last) of a memory that begins at address `start` to sums, peaks and totals."""
    scaled, rotated, tile, turned, logits, sums, statistics = floats
    begin, end, raw_first = rows
    angle_cos, angle_sin, rotate_keys, offset_cos, offset_sin = rotations
    group, dim, half = len(peak), np.int64(layout.head_dim), angle_cos.shape[1]
    angles_cos = floats_at(angle_cos.ctypes.data, angle_cos.size)
    angles_sin = floats_at(angle_sin.ctypes.data, angle_sin.size)
    turn_cos = floats_at(offset_cos.ctypes.data, offset_cos.size)
    turn_sin = floats_at(offset_sin.ctypes.data, offset_sin.size)
    is_wide = dim % WIDE_LANES == 0 and half % WIDE_LANES == 0
    zero, into, heads = np.int64(0), tile.ctypes.data, np.int64(layout.num_kv_heads)
    shorts, short_at, plane_bytes = (
        is_short(layout, half),
        angles.ctypes.data,
        2 * angles.shape[1] * angles.shape[2],
    )
    sums_at, peaks_at, totals_at = sums.ctypes.data, peak.ctypes.data, total.ctypes.data
    rotated_at = rotated.ctypes.data
    cos_at, sin_at, has_keys, has_larger = offset_cos.ctypes.data, offset_sin.ctypes.data, False, False
    for e in range(first, last):
        rotate_into_tile(scaled, zero, group, dim, angles_cos, angles_sin, e * half, zero, half, rotated)
        is_raw, block = raw_rows[e] > 0, start + 2 * offset[e]
        keys = part_of_keys(layout, tables, block, kv_head, statistics)
        values = part_of_values(layout, tables, block, kv_head)
        before_keys, before_values = zero, zero
        if not is_raw:
            before_keys = outliers_before(layout, keys, np.int64(begin[e]))
            before_values = outliers_before(layout, values, np.int64(begin[e]))
        if HAS_PAIR_DOTS and shorts and not is_raw:
            rotates = rotate_keys[e] != 0 and half > 0
            if layout.key_stats >= 0 or not has_keys:
                prepare_keys(desk, layout, keys, levels[0])
                has_keys = True
            has_larger = prepare_outliers(desk, layout, keys, np.int64(begin[e]))
            prepare_queries(desk, layout, rotated_at, group, rotates)
            prepare_values(desk, values, np.int64(begin[e]), np.int64(end[e]))
        raw = block + 2 * (kv_head * raw_rows[e] - raw_first[e]) * dim
        step = TILE_ROWS if shorts and not is_raw and layout.bits < 8 else ROWS
        tile_bytes = step * layout.row_bytes
        to_next = tile_bytes
        if e + 1 < last and raw_rows[e + 1] == 0:
            to_next = 2 * (offset[e + 1] - offset[e])
            _ask_statistics(layout, block + to_next, kv_head)
            to_next += (
                np.int64(begin[e + 1]) - (end[e] - 1 - begin[e]) // step * step - begin[e]
            ) * layout.row_bytes
        for row in range(begin[e], end[e], step):
            count = min(step, end[e] - row)
            ahead = tile_bytes if row + step < end[e] else to_next
            if HAS_PAIR_DOTS and shorts and not is_raw:
                unpack_key_tile(desk, layout, keys, row, count)
                coming = keys.codes + row * layout.row_bytes + ahead
                before = before_keys
                before_keys = put_key_outliers(desk, layout, keys, row - begin[e], before_keys)
                key_logits(
                    desk, layout, count, short_at + row * (dim // 2), plane_bytes, rotates, group, coming
                )
                if has_larger:
                    correct_logits(
                        desk, layout, keys, row, before, before_keys, cos_at, sin_at, rotates, group
                    )
                unpack_value_tile(desk, layout, values, row, count)
                weigh_logits(
                    desk,
                    row,
                    count,
                    levels[1],
                    softcap,
                    sums_at,
                    dim,
                    group,
                    peaks_at,
                    totals_at,
                    layout.capacity > 0,
                )
                weigh_tile(desk, layout, count, group, coming + layout.value_codes - layout.key_codes)
                if layout.capacity:
                    before_values = add_value_outliers(desk, layout, values, row, count, before_values, group)
                continue
            if is_raw:
                widen_rows(raw + 2 * row * dim, count * dim, into)
            else:
                before_keys = unpack_keys(layout, keys, row, count, before_keys, into, ahead)
            tile_logits(
                tile, zero, count, None, turn_cos, turn_sin, row * half, half, rotate_keys[e] != 0, rotated, group,
                dim, turned, logits,
            )  # fmt: skip
            if is_raw:
                widen_rows(raw + 2 * (heads * raw_rows[e] + row) * dim, count * dim, into)
            else:
                before_values = unpack_values(layout, values, row, count, before_values, into, ahead)
            for m in range(group):
                if softcap > 0:
                    cap_logits(logits[m * ROWS : (m + 1) * ROWS], count, softcap)
                lower = peak[m]
                peak[m], total[m] = _weights(logits, m * ROWS, count, sums, m * dim, dim, peak[m], total[m])
                if HAS_PAIR_DOTS and shorts and peak[m] > lower:
                    scale_sums(desk, m, dim, exp32((lower - peak[m]) * _LN2), layout.capacity > 0)
            if is_wide:
                _add_wide_values(tile, zero, count, None, logits, group, dim, sums)
            else:
                _add_values(tile, zero, count, logits, group, dim, sums)


@njit(**INLINE)
def _ask_statistics(layout: Any, block: Any, kv_head: Any) -> None:
    """Asks for what a head of the block at an address has beside its codes."""
    head = block + kv_head * layout.head_bytes
    codes = layout.value_codes + layout.block_size * layout.row_bytes
    for at in range(head + codes, head + layout.head_bytes, LINE_BYTES):
        prefetch_at(at)
    statistics = block + layout.value_stats + kv_head * layout.value_stats_stride
    for at in range(statistics, statistics + 4 * layout.block_size, LINE_BYTES):
        prefetch_at(at)
