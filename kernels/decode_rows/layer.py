"""The compiled call: rows are written in order, then pieces of the session are attended, and merged for each row."""

from __future__ import annotations

from typing import Any

import numpy as np

from moorage.kernels.block_attention.lane_rows import attend_lanes
from moorage.kernels.block_attention.logits import asks_ahead
from moorage.kernels.block_attention.rows import Entries, attend_rows
from moorage.kernels.compiling import njit
from moorage.kernels.decode_layer.entries import PIECE_ROWS, count_blocks, count_pieces, fill_entries
from moorage.kernels.decode_layer.layer import merge_parts
from moorage.kernels.decode_layer.memory import all_memory, block_at, session_fits, write_row
from moorage.kernels.decode_layer.records import FINE, MISFIT, NOT_FINITE_ROW
from moorage.kernels.decode_rows.steps import attend_alike, plan_steps, split_turns
from moorage.kernels.numba_flags import SERIAL
from moorage.kernels.thread_team import run_units, unit_call

PIECES_PER_THREAD = 2
"""Pieces for each thread from which on they are not divided by heads: every unit makes the angles of its piece."""


MIN_LANES = 5
"""Queries of a KV head from which on each has a lane of its own: four fit the registers of `attend_rows`."""


@njit(**SERIAL)
def run_rows(
    team: Any, threads: Any, table: Any, empty: Any, shape: Any, batch: Any, query: Any, key: Any, value: Any,
    selections: Any, attended: Any, not_finite: Any,
) -> Any:  # fmt: skip
    """`decode_rows` of arrays whose shapes fit; how many rows failed."""
    page_size = 2 * shape.num_kv_heads * shape.block_size * shape.head_dim
    memory, first = all_memory(table, page_size, empty)
    attended.failed[:] = _write(memory, first, table, shape, batch, key, value, selections, not_finite)
    if attended.failed[0] != FINE:
        attended.out[:], attended.lse[:] = 0, -np.inf
        return len(query)
    num_rows = len(query)
    num_pieces = np.zeros(num_rows, np.int64)
    for r in range(num_rows):
        num_pieces[r] = count_pieces(r, 0, shape.block_size, batch, selections)
    most = num_pieces.max()
    shares = shape.num_kv_heads if threads > 1 and most < PIECES_PER_THREAD * threads else 1
    outs = np.empty((num_rows, most, *query.shape[1:]), np.float32)
    lses = np.empty((num_rows, most, query.shape[1]), np.float32)
    run_units(
        team, most * shares,
        *unit_call(
            _attend_unit,
            (memory, first, shape, batch, selections, query, num_pieces, shares, outs, lses),
        ),
    )  # fmt: skip
    for r in range(num_rows):
        merge_parts(outs[r], lses[r], 0, num_pieces[r], attended.out[r], attended.lse[r])
    return 0


@njit(**SERIAL)
def _write(
    memory: Any, first: Any, table: Any, shape: Any, batch: Any, key: Any, value: Any, selections: Any,
    not_finite: Any,
) -> Any:  # fmt: skip
    """Writes all rows in order, if each of them has its place; FINE, NOT_FINITE_ROW or MISFIT."""
    page_size = 2 * shape.num_kv_heads * shape.block_size * shape.head_dim
    for r in range(len(key)):
        if batch.position[r] != batch.position[0] + r or selections.selects[r] != 0:
            return MISFIT
        if not session_fits(r, table, shape, batch, selections):
            return MISFIT
    most = np.int64(0)
    for r in range(len(key)):
        block, row = divmod(batch.position[r], shape.block_size)
        at = block_at(block, r, batch, shape.stripe_blocks, first, page_size)
        most = max(most, write_row(memory, at, row, shape.block_size, True, shape, key[r], value[r]))
    return FINE if most < not_finite else NOT_FINITE_ROW


@njit(**SERIAL)
def _attend_unit(
    unit: Any, memory: Any, first: Any, shape: Any, batch: Any, selections: Any, query: Any, num_pieces: Any,
    shares: Any, outs: Any, lses: Any,
) -> None:  # fmt: skip
    """One piece of all rows, or one of its shares of heads."""
    piece, share = divmod(unit, shares)
    heads = query.shape[1] // shape.num_kv_heads
    head_size, each = shape.block_size * shape.head_dim, shape.num_kv_heads // shares
    to_values, half = shape.num_kv_heads * head_size, batch.offset_cos.shape[1]
    by_lanes = len(query) * heads >= MIN_LANES and half > 0 and asks_ahead(shape.head_dim, half)
    by_lanes = by_lanes and batch.softcap[0] == 0 and attend_alike(batch, selections)
    if by_lanes:
        num_steps, steps = plan_steps(piece, first, shape, batch, split_turns(batch), heads)
        for kv_head in range(each * share, each * (share + 1)):
            a, b = kv_head * heads, (kv_head + 1) * heads
            attend_lanes(
                query[:, a:b], memory, kv_head * head_size, to_values, num_steps, steps, batch.offset_cos,
                batch.offset_sin, batch.scale[0], outs[:, piece, a:b], lses[:, piece, a:b],
            )  # fmt: skip
        return
    entries = _entries(piece, first, shape, batch, selections, num_pieces)
    for kv_head in range(each * share, each * (share + 1)):
        a, b = kv_head * heads, (kv_head + 1) * heads
        attend_rows(
            query[:, a:b], memory, kv_head * head_size, to_values, entries, batch.offset_cos, batch.offset_sin,
            batch.scale[0], batch.softcap[0], outs[:, piece, a:b], lses[:, piece, a:b],
        )  # fmt: skip


@njit(**SERIAL)
def _entries(
    piece: Any, first: Any, shape: Any, batch: Any, selections: Any, num_pieces: Any
) -> Any:  # fmt: skip
    """What each row attends of one piece."""
    num_rows, half, length = (
        len(num_pieces),
        batch.offset_cos.shape[1],
        max(1, PIECE_ROWS // shape.block_size),
    )
    most = np.int64(0)
    for r in range(num_rows):
        blocks = count_blocks(r, 0, shape.block_size, batch, selections)
        most = max(most, min(length, blocks - piece * length) * batch.num_parts[r])
    each = num_rows, max(most, 0)
    found = Entries(
        np.zeros(num_rows, np.int64), np.empty(each, np.int64), np.empty(each, np.int64), np.empty(each, np.int32),
        np.empty(each, np.int32), np.empty(each, np.uint8), np.empty((*each, half), np.float32),
        np.empty((*each, half), np.float32),
    )  # fmt: skip
    for r in range(num_rows):
        if piece < num_pieces[r]:
            found.count[r] = fill_entries(
                r, 0, piece, shape, batch, selections, first, found.order[r], found.offset[r], found.begin[r],
                found.end[r], found.rotates[r], found.cos[r], found.sin[r],
            )  # fmt: skip
    return found
