"""One KV head of attention over packed blocks: tiles of rows are unpacked, and attended as `head.py` attends them."""

from __future__ import annotations

from typing import Any

import numpy as np

from moorage.kernels.addresses import matrix_at
from moorage.kernels.block_attention.head import (
    _add_values,
    _add_wide_values,
    _weights,
    cap_logits,
    share_sums,
)
from moorage.kernels.block_attention.logits import ROWS, rotate_into_tile, tile_logits
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


@njit(**SERIAL)
def attend_packed_head(
    query: Any, memory: Any, packed: Any, kv_head: Any, offset: Any, raw_rows: Any, rows: Any, first: Any, last: Any,
    rotations: Any, scale: Any, softcap: Any, out: Any, lse: Any,
) -> None:  # fmt: skip
    """`attend_head` of entries in `memory`, elements of 16 bits, most of which are packed blocks of a PackedLayer.

    offset [n]: the element at which an entry begins. It is a packed block where raw_rows [n] is 0, else a page of so
    many rows of fp16, [K | V][Hkv][raw_rows][D]. `rows` are (begin, end, raw_first), each [n]: an entry attends rows
    [begin, end) of its block, and the first row of a page is row `raw_first` of the block.
    """
    group, dim = query.shape
    sizes = group * dim, ROWS * dim, ROWS * dim, group * ROWS, 2 * packed.layout.width, group * dim
    room = np.empty(sum(sizes) + len(sizes) * LINE_BYTES, np.float32)
    # Arrays by address, since compiled code counts the users of others at each use.
    places, at = np.empty(len(sizes), np.int64), room.ctypes.data
    for i in range(len(sizes)):
        places[i] = -(-at // LINE_BYTES) * LINE_BYTES
        at = places[i] + 4 * sizes[i]
    rotated, tile, turned, logits, scaled = (
        _floats(places[0], sizes[0], room), _floats(places[1], sizes[1], room), _floats(places[2], sizes[2], room),
        _floats(places[3], sizes[3], room), _floats(places[5], sizes[5], room),
    )  # fmt: skip
    for m in range(group):
        for d in range(dim):
            scaled[m * dim + d] = scale * query[m, d]
    peak, total = np.full(group, -np.inf, np.float32), np.zeros(group, np.float32)
    out[:] = 0
    _add_entries(
        (scaled, rotated, tile, turned, logits, _floats(out.ctypes.data, out.size, room), places[4]),
        memory.ctypes.data, packed.layout, packed.tables, kv_head, offset, raw_rows, rows, first, last, rotations,
        softcap, peak, total,
    )  # fmt: skip
    room[0] = 0  # until here it is held
    share_sums(peak, total, out, lse)


@njit(**INLINE)
def _floats(address: Any, size: Any, like: Any) -> Any:
    """The float32 array of `size` elements at an address."""
    return matrix_at(address, np.int64(1), size, like).reshape(-1)


@njit(**SERIAL)
def _add_entries(
    desk: Any, start: Any, layout: Any, tables: Any, kv_head: Any, offset: Any, raw_rows: Any, rows: Any, first: Any,
    last: Any, rotations: Any, softcap: Any, peak: Any, total: Any,
) -> None:  # fmt: skip
    """Adds entries [first, last) of a memory that begins at address `start` to sums, peaks and totals."""
    scaled, rotated, tile, turned, logits, sums, statistics = desk
    begin, end, raw_first = rows
    angle_cos, angle_sin, rotate_keys, offset_cos, offset_sin = rotations
    group, dim, half = len(peak), np.int64(layout.head_dim), angle_cos.shape[1]
    angles_cos = _floats(angle_cos.ctypes.data, angle_cos.size, peak)
    angles_sin = _floats(angle_sin.ctypes.data, angle_sin.size, peak)
    turn_cos = _floats(offset_cos.ctypes.data, offset_cos.size, peak)
    turn_sin = _floats(offset_sin.ctypes.data, offset_sin.size, peak)
    is_wide = dim % WIDE_LANES == 0 and half % WIDE_LANES == 0
    zero, into, heads = np.int64(0), tile.ctypes.data, np.int64(layout.num_kv_heads)
    tile_bytes = ROWS * layout.row_bytes
    for e in range(first, last):
        rotate_into_tile(scaled, zero, group, dim, angles_cos, angles_sin, e * half, zero, half, rotated)
        is_raw, block = raw_rows[e] > 0, start + 2 * offset[e]
        keys = part_of_keys(layout, tables, block, kv_head, statistics)
        values = part_of_values(layout, tables, block, kv_head)
        before_keys, before_values = zero, zero
        if not is_raw:
            before_keys = outliers_before(layout, keys, np.int64(begin[e]))
            before_values = outliers_before(layout, values, np.int64(begin[e]))
        raw = block + 2 * (kv_head * raw_rows[e] - raw_first[e]) * dim
        to_next = tile_bytes
        if e + 1 < last and raw_rows[e + 1] == 0:
            to_next = 2 * (offset[e + 1] - offset[e])
            _ask_statistics(layout, block + to_next, kv_head)
            to_next += (
                np.int64(begin[e + 1]) - (end[e] - 1 - begin[e]) // ROWS * ROWS - begin[e]
            ) * layout.row_bytes
        for row in range(begin[e], end[e], ROWS):
            count = min(ROWS, end[e] - row)
            ahead = tile_bytes if row + ROWS < end[e] else to_next
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
                peak[m], total[m] = _weights(logits, m * ROWS, count, sums, m * dim, dim, peak[m], total[m])
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
