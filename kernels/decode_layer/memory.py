"""Where the blocks of a session lie, by stripes and pages; and the new row written among them."""

from __future__ import annotations

from typing import Any

import numpy as np

from moorage.kernels.addresses import spanned
from moorage.kernels.checks import all_within
from moorage.kernels.compiling import njit
from moorage.kernels.half import largest, narrow, no_bits
from moorage.kernels.numba_flags import INLINE, SERIAL

KV, ANCHORS, CODES, PAGES, CENTRES_AT = 0, 1, 2, 3, 4
"""Columns of `LayerMemory.table`."""


@njit(**SERIAL)
def all_memory(table: Any, page_size: Any, empty: Any) -> Any:
    """`spanned` of the keys and values in all memories."""
    return spanned(table[:, KV].copy(), table[:, PAGES] * page_size, empty)


@njit(**SERIAL)
def count_in(total: Any, shard: Any, num_memories: Any, stripe_blocks: Any) -> Any:
    """How many of the first `total` blocks lie in the memory of stripe `shard`."""
    rounds, rest = divmod(np.int64(total), num_memories * stripe_blocks)
    return rounds * stripe_blocks + min(max(rest - shard * stripe_blocks, 0), stripe_blocks)


@njit(**INLINE)
def page_of(
    block: Any, pages: Any, starts: Any, first_memory: Any, num_memories: Any, stripe_blocks: Any
) -> Any:
    """(memory, page) of a block of one session, of whose pages those in memory m begin at starts[m] of `pages`."""
    m, local = np.int64(0), np.int64(block)
    if num_memories > 1:
        stripe, within = divmod(local, stripe_blocks)
        turn, shard = divmod(stripe, num_memories)
        m, local = (first_memory + shard) % num_memories, turn * stripe_blocks + within
    return m, np.int64(pages[starts[m] + local])


@njit(**INLINE)
def stripe_at(
    block: Any, starts: Any, first_memory: Any, num_memories: Any, stripe_blocks: Any, number: Any
) -> Any:
    """(memory, place, count): where among all pages those of `number` blocks from `block` on begin, and how many of
    these lie side by side there."""
    if num_memories == 1:
        return np.int64(0), np.int64(starts[0] + block), np.int64(number)
    stripe, within = divmod(np.int64(block), stripe_blocks)
    turn, shard = divmod(stripe, num_memories)
    m = (first_memory + shard) % num_memories
    at = starts[m] + turn * stripe_blocks + within
    return m, np.int64(at), min(np.int64(number), stripe_blocks - within)


@njit(**SERIAL)
def block_at(block: Any, i: Any, batch: Any, stripe_blocks: Any, first: Any, page_size: Any) -> Any:
    """The element of all memory at which a block of session i begins."""
    m, page = page_of(
        block, batch.pages, batch.page_start[i], batch.first_memory[i], len(first), stripe_blocks
    )
    return first[m] + page * page_size


@njit(**SERIAL)
def session_fits(i: Any, table: Any, shape: Any, batch: Any, selections: Any) -> Any:
    """Whether session i names rows, blocks, pages and positions that exist alone."""
    num_memories, last = len(table), batch.position[i] // shape.block_size
    sinks, near, window = batch.num_sinks[i], batch.near_block[i], selections.window_first[i]
    selects = selections.selects[i] != 0
    if batch.position[i] < 0 or not 0 <= batch.first_memory[i] < num_memories:
        return False
    if not 0 <= sinks <= near <= last + 1 or (not selects and not sinks <= window <= last + 1):
        return False
    for shard in range(num_memories):
        m = (batch.first_memory[i] + shard) % num_memories
        begin, end = batch.page_start[i, m], batch.page_start[i, m + 1]
        if not 0 <= begin <= end <= len(batch.pages):
            return False
        if end - begin < count_in(last + 1, shard, num_memories, shape.stripe_blocks):
            return False
        if not all_within(batch.pages[begin:end], table[m, PAGES]):
            return False
    if not selects and not _ids_fit(selections.ids[i], last):
        return False
    return _positions_fit(i, last, shape.block_size, batch)


@njit(**SERIAL)
def _ids_fit(ids: Any, last: Any) -> Any:
    """Whether ids [S, k] are of blocks up to `last`, padded with -1 at their end alone."""
    for row in ids:
        for j in range(len(row)):
            if not -1 <= row[j] <= last or (j and row[j] >= 0 and row[j - 1] < 0):
                return False
    return True


@njit(**SERIAL)
def _positions_fit(i: Any, last: Any, block_size: Any, batch: Any) -> Any:
    if not 0 <= batch.num_parts[i] <= batch.part_low.shape[1]:
        return False
    rows = last + 1 if not batch.period else min(last + 1, batch.period // block_size)
    rotates = np.count_nonzero(batch.part_rotates[i, : batch.num_parts[i]]) > 0
    return len(batch.bases) >= rows or not rotates


@njit(**SERIAL)
def write_row(
    memory: Any, at: Any, row: Any, rows: Any, clears: Any, shape: Any, key: Any, value: Any
) -> Any:
    """Writes key, value [Hkv, D] as `row` of the `rows` rows at `at`; the largest bits stored, see `largest`.

    Where `clears`, the first row clears the others, since pages are used again without a sweep.
    """
    dim, head_size = shape.head_dim, rows * shape.head_dim
    found = np.int64(0)
    for values in (key, value):
        for head in range(shape.num_kv_heads):
            target, source = memory[at + row * dim : at + (row + 1) * dim], values[head]
            most = no_bits(target[0])
            for d in range(dim):
                stored = narrow(source[d], target[d])
                target[d] = stored
                most = largest(most, stored)
            found = max(found, np.int64(most))
            if clears and row == 0:
                memory[at + dim : at + head_size] = 0
            at += head_size
    return found
