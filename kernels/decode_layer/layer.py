"""The compiled call: first each session writes and selects, then pieces of all of them are attended and merged."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from moorage.kernels.compiling import njit
from moorage.kernels.decode_layer.entries import count_pieces, merge_part
from moorage.kernels.decode_layer.memory import all_memory, session_fits
from moorage.kernels.decode_layer.packed import attend_piece, page_elements, raw_pages_fit, write_new_row
from moorage.kernels.decode_layer.records import FINE, MISFIT, NOT_FINITE_ROW
from moorage.kernels.decode_layer.selection import select_candidates
from moorage.kernels.numba_flags import SERIAL
from moorage.kernels.thread_team import ALONE, num_threads, run_units, unit_call

PIECES_PER_THREAD = 4
"""Pieces for each thread from which on they are not divided by heads: every unit makes the angles of its piece."""


class Layer(NamedTuple):
    """All that one call works on."""

    table: Any
    empty: Any
    anchor_size: Any
    shape: Any
    batch: Any
    query: Any
    key: Any
    value: Any
    selections: Any
    attended: Any
    hints: Any
    """`prefetch_distance` of the anchors."""
    not_finite: Any
    """The least bits that are no finite number, see `largest`."""
    memory: Any
    first: Any
    """Of `all_memory`."""
    packed: Any
    """Of `LayerMemory`."""


class Dealt(NamedTuple):
    """What is attended, divided into units and parts."""

    shares: Any
    """Units of a piece."""
    unit_at: Any
    """[N * S + 1]: the first unit of each selection of each session."""
    part_at: Any
    """[N + 1]: the first part of each session; each of its pieces is one."""
    outs: Any
    """[parts, Hq, D]"""
    lses: Any
    """[parts, Hq], -inf at first."""


@njit(**SERIAL)
def run_layer(
    team: Any, min_bytes: Any, table: Any, empty: Any, anchor_size: Any, shape: Any, batch: Any, query: Any, key: Any,
    value: Any, selections: Any, attended: Any, hints: Any, not_finite: Any,
    packed: Any,
) -> Any:  # fmt: skip
    """`decode_layer` of arrays whose shapes fit, by a team for what reads `min_bytes`; how many sessions failed."""
    memory, first = all_memory(table, page_elements(packed, shape), empty)
    layer = Layer(
        table, empty, anchor_size, shape, batch, query, key, value, selections, attended, hints, not_finite, memory,
        first, packed,
    )  # fmt: skip
    selected, read = _num_bytes(layer)
    selecting, attending = team if selected >= min_bytes else ALONE, team if read >= min_bytes else ALONE
    count = len(query)
    if count < num_threads(selecting):
        for i in range(count):
            _begin(i, layer, selecting)
    else:
        run_units(selecting, count, *unit_call(_begin, (layer, ALONE)))
    dealt = _plan(layer, num_threads(attending))
    run_units(attending, dealt.unit_at[-1], *unit_call(_attend_unit, (layer, dealt)))
    num_failed = np.int64(0)
    for i in range(count):
        _merge(dealt, i, attended)
        num_failed += attended.failed[i] != FINE
    return num_failed


@njit(**SERIAL)
def _num_bytes(layer: Any) -> Any:
    """(bytes of anchors, of keys and values) that are read, about."""
    shape, batch, selections, item = layer.shape, layer.batch, layer.selections, layer.empty.itemsize
    num_scored, num_attended = np.int64(0), np.int64(0)
    for i in range(len(layer.query)):
        near, sinks = np.int64(batch.near_block[i]), np.int64(batch.num_sinks[i])
        window = near if selections.selects[i] else np.int64(selections.window_first[i])
        num_attended += sinks + selections.ids.shape[2] + batch.position[i] // shape.block_size + 1 - window
        num_scored += near - sinks if selections.selects[i] else 0
    page_size = page_elements(layer.packed, shape)
    return num_scored * layer.anchor_size * item, num_attended * page_size * item


@njit(**SERIAL)
def _begin(i: Any, layer: Any, team: Any) -> None:
    """Writes the row of session i and selects its blocks."""
    table, shape, batch, attended = layer.table, layer.shape, layer.batch, layer.attended
    attended.failed[i] = MISFIT
    fits = session_fits(i, table, shape, batch, layer.selections)
    if fits and raw_pages_fit(layer.packed, i, table, batch):
        key, value = layer.key[i], layer.value[i]
        most = write_new_row(layer.packed, i, layer.memory, shape, batch, layer.first, key, value)
        attended.failed[i] = FINE if most < layer.not_finite else NOT_FINITE_ROW
    if attended.failed[i] == FINE and layer.selections.selects[i]:
        select_candidates(i, layer, team)


@njit(**SERIAL)
def _plan(layer: Any, threads: Any) -> Any:
    """What is to be attended. Pieces are divided by heads where there are few for the threads."""
    query = layer.query
    count, num_selections = len(query), layer.selections.ids.shape[1]
    pieces, unit_at = (
        np.zeros(count * num_selections, np.int64),
        np.zeros(count * num_selections + 1, np.int64),
    )
    part_at = np.zeros(count + 1, np.int64)
    for i in range(count):
        most = np.int64(0)
        for selection in range(num_selections if layer.attended.failed[i] == FINE else 0):
            number = count_pieces(i, selection, layer.shape.block_size, layer.batch, layer.selections)
            pieces[i * num_selections + selection], most = number, max(most, number)
        part_at[i + 1] = part_at[i] + most
    shares = np.int64(1)
    if threads > 1 and pieces.sum() < PIECES_PER_THREAD * threads:
        shares = max(num_selections, layer.shape.num_kv_heads) // num_selections
    for at in range(len(pieces)):
        unit_at[at + 1] = unit_at[at] + pieces[at] * shares
    outs = np.empty((part_at[count], *query.shape[1:]), np.float32)
    lses = np.full((part_at[count], query.shape[1]), -np.inf, np.float32)
    return Dealt(shares, unit_at, part_at, outs, lses)


@njit(**SERIAL)
def _attend_unit(unit: Any, layer: Any, dealt: Any) -> None:
    """Attends the piece of a unit with its heads, into their part of `dealt`."""
    shape, batch, num_selections = layer.shape, layer.batch, layer.selections.ids.shape[1]
    num_groups, shares = max(num_selections, shape.num_kv_heads), dealt.shares
    each = num_groups // num_selections
    at = np.searchsorted(dealt.unit_at, unit, side="right") - 1
    i, selection = divmod(at, num_selections)
    piece, share = divmod(unit - dealt.unit_at[at], shares)
    into, first = dealt.part_at[i] + piece, selection * each
    groups = first + each * share // shares, first + each * (share + 1) // shares, num_groups
    attend_piece(
        layer.packed, i, selection, piece, groups, layer.memory, layer.first, shape, batch, layer.query[i],
        layer.selections, dealt.outs[into], dealt.lses[into],
    )  # fmt: skip


@njit(**SERIAL)
def _merge(dealt: Any, i: Any, attended: Any) -> None:
    """Joins the parts of session i."""
    begin, end = dealt.part_at[i], dealt.part_at[i + 1]
    merge_parts(dealt.outs, dealt.lses, begin, end, attended.out[i], attended.lse[i])


@njit(**SERIAL)
def merge_parts(outs: Any, lses: Any, begin: Any, end: Any, out: Any, lse: Any) -> None:
    """Joins parts [begin, end) of outs [parts, Hq, D], lses [parts, Hq] in their order into out [Hq, D], lse [Hq]."""
    for head in range(len(out)):
        into = out[head]
        lse[head] = lses[begin, head] if begin < end else np.float32(-np.inf)
        for d in range(len(into)):
            into[d] = outs[begin, head, d] if begin < end else np.float32(0)
        for part in range(begin + 1, end):
            lse[head] = merge_part(into, lse[head], outs[part, head], lses[part, head])
