"""The blocks of sessions in memories whose full blocks are packed; rows of the last block lie in pages in fp16.

A query sees the rows of its own block, and the first tokens of its session, in fp16, and all others as they are
packed. The functions here take None where blocks are not packed, which is known when they are compiled.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from moorage.kernels.block_attention.packed import attend_packed_head
from moorage.kernels.block_attention.short_desk import short_angles
from moorage.kernels.compiling import njit
from moorage.kernels.decode_layer.entries import (
    PIECE_ROWS,
    attend_group,
    block_of,
    count_blocks,
    make_entries,
    turn_angles,
)
from moorage.kernels.decode_layer.memory import PAGES, block_at, page_of, write_row
from moorage.kernels.numba_flags import INLINE, SERIAL
from moorage.kernels.packed_blocks.unpack import PackedLayer


class PackedMemory(NamedTuple):
    """How the packed blocks of a layer, and the pages of rows beside them, are read. Pages have one size."""

    layer: PackedLayer
    raw_rows: int
    """Rows of fp16 that a page holds, [K | V][Hkv][raw_rows][D]."""
    fp16_sinks: int
    """First tokens that are read in fp16."""

    @property
    def open_pages(self) -> int:
        """Pages of the rows of one block."""
        return -(-self.layer.layout.block_size // self.raw_rows)

    @property
    def num_raw_pages(self) -> int:
        """Pages of rows that a session has in each memory."""
        return self.open_pages - (-self.fp16_sinks // self.raw_rows)


@njit(**SERIAL)
def page_elements(packed: Any, shape: Any) -> Any:
    """Elements of a page of one layer."""
    if packed is None:
        return 2 * shape.num_kv_heads * shape.block_size * shape.head_dim
    return packed.layer.layout.block_bytes // 2


@njit(**SERIAL)
def write_new_row(
    packed: Any, i: Any, memory: Any, shape: Any, batch: Any, first: Any, key: Any, value: Any
) -> Any:
    """Writes the row of session i, [Hkv, D] each of key and value; the largest bits stored, see `largest`."""
    block, row = divmod(batch.position[i], shape.block_size)
    size = page_elements(packed, shape)
    if packed is None:
        at = block_at(block, i, batch, shape.stripe_blocks, first, size)
        return write_row(memory, at, row, shape.block_size, True, shape, key, value)
    # Nobody reads the rows behind it, and others may write them now.
    page, place = divmod(row, packed.raw_rows)
    at = raw_page(memory_of(block, i, shape, batch, first), i, page, batch, first, size)
    return write_row(memory, at, place, packed.raw_rows, False, shape, key, value)


@njit(**SERIAL)
def attend_piece(
    packed: Any, i: Any, selection: Any, piece: Any, groups: Any, memory: Any, first: Any, shape: Any, batch: Any,
    query: Any, selections: Any, out: Any, lse: Any,
) -> None:  # fmt: skip
    """Attends one piece of a selection of session i with groups [begin, end) of all `num_groups` groups of heads."""
    begin, end, num_groups = groups
    scale, softcap = batch.scale[i], batch.softcap[i]
    if packed is None:
        entries = make_entries(i, selection, piece, shape, batch, selections, first)
        for group in range(begin, end):
            attend_group(group, num_groups, entries, memory, shape, query, scale, softcap, out, lse)
        return
    offset, raw_rows, rows, rotations = _entries(packed, i, selection, piece, shape, batch, selections, first)
    heads, none = len(out) // num_groups, np.int64(0)
    angles = short_angles(packed.layer.layout, batch.offset_cos, batch.offset_sin)
    for group in range(begin, end):
        a, b, kv_head = group * heads, (group + 1) * heads, group * shape.num_kv_heads // num_groups
        attend_packed_head(
            query[a:b], memory, packed.layer, kv_head, offset, raw_rows, rows, none, len(offset), rotations, angles,
            scale, softcap, out[a:b], lse[a:b],
        )  # fmt: skip


@njit(**INLINE)
def raw_pages_fit(packed: Any, i: Any, table: Any, batch: Any) -> Any:
    """Whether the pages of rows of session i exist."""
    if packed is not None:
        for m in range(batch.raw_pages.shape[1]):
            for page in batch.raw_pages[i, m]:
                if not 0 <= page < table[m, PAGES]:
                    return False
    return True


@njit(**SERIAL)
def memory_of(block: Any, i: Any, shape: Any, batch: Any, first: Any) -> Any:
    """The memory that a block of session i lies in."""
    starts, begins = batch.page_start[i], batch.first_memory[i]
    return page_of(block, batch.pages, starts, begins, len(first), shape.stripe_blocks)[0]


@njit(**SERIAL)
def raw_page(m: Any, i: Any, page: Any, batch: Any, first: Any, page_size: Any) -> Any:
    """The element at which one of the pages of rows of session i in memory m begins."""
    return first[m] + np.int64(batch.raw_pages[i, m, page]) * page_size


@njit(**INLINE)
def raw_rows_of(packed: Any, block: Any, own: Any, block_size: Any) -> Any:
    """(page, end): rows [0, end) of a block lie in the session's pages of rows, from number `page` on.

    `own` is the block that the query is in.
    """
    page, end = np.int64(0), np.int64(block_size) if block == own else np.int64(0)
    if block == 0 and own > 0:
        page, end = -(-np.int64(block_size) // packed.raw_rows), np.int64(packed.fp16_sinks)
    return page, end


@njit(**SERIAL)
def _entries(
    packed: Any, i: Any, selection: Any, piece: Any, shape: Any, batch: Any, selections: Any, first: Any
) -> Any:
    """(offset, raw_rows, rows, rotations) of one piece, as `attend_packed_head` takes them."""
    size, num_parts = np.int64(shape.block_size), np.int64(batch.num_parts[i])
    page_size, each = page_elements(packed, shape), np.int64(packed.raw_rows)
    total, length = count_blocks(i, selection, size, batch, selections), max(1, PIECE_ROWS // size)
    own, half = batch.position[i] // size, batch.offset_cos.shape[1]
    low, high = piece * length, min(total, (piece + 1) * length)
    most = (max(0, high - low) + batch.raw_pages.shape[2]) * num_parts
    offset, raw_rows = np.empty(most, np.int64), np.empty(most, np.int64)
    rows, rotates = np.empty((3, most), np.int32), np.empty(most, np.uint8)
    cos, sin = np.empty((most, half), np.float32), np.empty((most, half), np.float32)
    count = np.int64(0)
    for at in range(low, high):
        block = block_of(at, total, i, selection, size, batch, selections)
        where, m = (
            block_at(block, i, batch, shape.stripe_blocks, first, page_size),
            memory_of(block, i, shape, batch, first),
        )
        page, raw_end = raw_rows_of(packed, block, own, size)
        for part in range(num_parts):
            begin = max(np.int64(0), batch.part_low[i, part] - block * size)
            end = min(size, batch.part_high[i, part] - block * size)
            while begin < end:
                is_raw = begin < raw_end
                last = min(end, (begin // each + 1) * each, raw_end) if is_raw else end
                rows[0, count], rows[1, count] = begin, last
                rows[2, count] = begin // each * each if is_raw else 0
                raw_rows[count], offset[count] = each if is_raw else 0, where
                if is_raw:
                    offset[count] = raw_page(m, i, page + begin // each, batch, first, page_size)
                rotates[count] = batch.part_rotates[i, part]
                turn_angles(batch, i, part, block * size, size, cos[count], sin[count])
                count, begin = count + 1, last
    found = rows[0, :count], rows[1, :count], rows[2, :count]
    rotations = cos[:count], sin[:count], rotates[:count], batch.offset_cos, batch.offset_sin
    return offset[:count], raw_rows[:count], found, rotations
