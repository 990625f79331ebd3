"""What one session attends, in pieces of a fixed length, so that its bits depend on nothing but itself."""

from __future__ import annotations

from typing import Any

import numpy as np

from moorage.kernels.block_attention.head import attend_head
from moorage.kernels.compiling import njit
from moorage.kernels.decode_layer.memory import block_at
from moorage.kernels.numba_flags import INLINE, SERIAL
from moorage.kernels.vector_math import exp32

PIECE_ROWS = 1024
"""Rows of the blocks of a piece, about: enough that merging costs little, and few enough to be dealt to threads."""


@njit(**SERIAL)
def count_blocks(i: Any, selection: Any, block_size: Any, batch: Any, selections: Any) -> Any:
    """Blocks that a selection of session i attends: sinks, ids and what `window_first` begins."""
    ids = selections.ids[i, selection]
    num_ids = len(ids)
    while num_ids and ids[num_ids - 1] < 0:
        num_ids -= 1
    last = batch.position[i] // block_size
    return batch.num_sinks[i] + num_ids + last + 1 - selections.window_first[i]


@njit(**SERIAL)
def count_pieces(i: Any, selection: Any, block_size: Any, batch: Any, selections: Any) -> Any:
    """Pieces of a selection of session i, at least one."""
    piece = max(1, PIECE_ROWS // block_size)
    return max(1, -(-count_blocks(i, selection, block_size, batch, selections) // piece))


@njit(**INLINE)
def block_of(
    at: Any, total: Any, i: Any, selection: Any, block_size: Any, batch: Any, selections: Any
) -> Any:
    """Number `at` of the `total` blocks that a selection of session i attends."""
    num_sinks = np.int64(batch.num_sinks[i])
    window_at = total - (batch.position[i] // block_size + 1 - selections.window_first[i])
    if at < num_sinks:
        return np.int64(at)
    if at < window_at:
        return np.int64(selections.ids[i, selection, at - num_sinks])
    return np.int64(selections.window_first[i] + at - window_at)


@njit(**SERIAL)
def make_entries(
    i: Any, selection: Any, piece: Any, shape: Any, batch: Any, selections: Any, first: Any
) -> Any:
    """(entries, offset, rows, rotations) of one piece, as `attend_head` takes them; `first` is that of `all_memory`.

    A block has an entry for each part of the position scheme that cuts it.
    """
    total = count_blocks(i, selection, shape.block_size, batch, selections)
    length = max(1, PIECE_ROWS // shape.block_size)
    most = max(0, min(total, (piece + 1) * length) - piece * length) * batch.num_parts[i]
    order, offset = np.empty(most, np.int64), np.empty(most, np.int64)
    begin, end = np.empty(most, np.int32), np.empty(most, np.int32)
    rotates = np.empty(most, np.uint8)
    half = batch.offset_cos.shape[1]
    cos, sin = np.empty((most, half), np.float32), np.empty((most, half), np.float32)
    count = fill_entries(
        i, selection, piece, shape, batch, selections, first, order, offset, begin, end, rotates, cos, sin
    )  # fmt: skip
    rotations = cos, sin, rotates, batch.offset_cos, batch.offset_sin
    return count, offset, (begin, end), rotations


@njit(**SERIAL)
def fill_entries(
    i: Any, selection: Any, piece: Any, shape: Any, batch: Any, selections: Any, first: Any, order: Any, offset: Any,
    begin: Any, end: Any, rotates: Any, cos: Any, sin: Any,
) -> Any:  # fmt: skip
    """Writes the entries of one piece into arrays that are long enough; returns their number.

    `order` ascends, and is the same for the same block and part whatever the position.
    """
    size = shape.block_size
    page_size = 2 * shape.num_kv_heads * size * shape.head_dim
    total = count_blocks(i, selection, size, batch, selections)
    length = max(1, PIECE_ROWS // size)
    count = 0
    for at in range(piece * length, min(total, (piece + 1) * length)):
        block = block_of(at, total, i, selection, size, batch, selections)
        start = block * size
        for part in range(batch.num_parts[i]):
            low, high = max(start, batch.part_low[i, part]), min(start + size, batch.part_high[i, part])
            if low >= high:
                continue
            order[count] = block * batch.part_low.shape[1] + part
            offset[count] = block_at(block, i, batch, shape.stripe_blocks, first, page_size)
            begin[count], end[count] = low - start, high - start
            rotates[count] = batch.part_rotates[i, part]
            turn_angles(batch, i, part, start, size, cos[count], sin[count])
            count += 1
    return count


@njit(**SERIAL)
def turn_angles(batch: Any, i: Any, part: Any, start: Any, size: Any, cos: Any, sin: Any) -> None:
    """Of the query towards a block that begins at token `start`, subtracted before they are rounded."""
    turn = batch.query_turn[i, part]
    if not batch.part_rotates[i, part]:
        for d in range(len(cos)):
            cos[d], sin[d] = turn[d].real, turn[d].imag
        return
    base = batch.bases[(start % batch.period if batch.period else start) // size]
    for d in range(len(cos)):
        cos[d] = turn[d].real * base[d].real + turn[d].imag * base[d].imag
        sin[d] = turn[d].imag * base[d].real - turn[d].real * base[d].imag


@njit(**SERIAL)
def attend_group(
    group: Any,
    num_groups: Any,
    entries: Any,
    memory: Any,
    shape: Any,
    query: Any,
    scale: Any,
    softcap: Any,
    out: Any,
    lse: Any,
) -> None:
    """One of the groups of query heads over the entries of a piece, into their rows of out [Hq, D], lse [Hq].

    A group is served by one KV head and one selection.
    """
    count, offset, rows, rotations = entries
    heads, kv_head = len(out) // num_groups, group * shape.num_kv_heads // num_groups
    a, b = group * heads, (group + 1) * heads
    head_size = shape.block_size * shape.head_dim
    attend_head(
        query[a:b], memory, kv_head * head_size, shape.num_kv_heads * head_size, offset, rows, np.int64(0), count,
        rotations, scale, softcap, out[a:b], lse[a:b],
    )  # fmt: skip


@njit(**SERIAL)
def merge_part(out: Any, lse: Any, part_out: Any, part_lse: Any) -> Any:
    """(out, lse) of one head joined with those of further keys: `out` in place, and the new lse is returned."""
    if part_lse == -np.inf:
        return lse
    peak = max(lse, part_lse)
    own, other = exp32(lse - peak), exp32(part_lse - peak)
    share = 1 / (own + other)
    for d in range(len(out)):
        out[d] = (own * out[d] + other * part_out[d]) * share
    return peak + np.log(own + other)
