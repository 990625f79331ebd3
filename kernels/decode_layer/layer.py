"""The compiled call: first each session writes and chooses, then pieces of all of them are attended and merged."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from moorage.kernels.decode_layer.choice import choose_blocks
from moorage.kernels.decode_layer.entries import attend_group, count_pieces, make_entries, merge_part
from moorage.kernels.decode_layer.memory import all_memory, block_at, session_fits, write_row
from moorage.kernels.decode_layer.records import FINE, MISFIT, NOT_FINITE_ROW
from moorage.kernels.in_parallel import in_parallel, take
from moorage.kernels.numba_flags import SERIAL

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
    choices: Any
    attended: Any
    hints: Any
    """`prefetch_distance` of the anchors."""
    not_finite: Any
    """The least bits that are no finite number, see `largest`."""
    memory: Any
    first: Any
    """Of `all_memory`."""


@njit(**SERIAL)
def run_layer(
    table: Any, empty: Any, anchor_size: Any, shape: Any, batch: Any, query: Any, key: Any, value: Any, choices: Any,
    attended: Any, hints: Any, not_finite: Any, min_bytes: Any, threads: Any,
) -> None:  # fmt: skip
    """`decode_layer` of arrays whose shapes fit. Work of less than `min_bytes` stays on this thread."""
    page_size = 2 * shape.num_kv_heads * shape.block_size * shape.head_dim
    memory, first = all_memory(table, page_size, empty)
    layer = Layer(
        table, empty, anchor_size, shape, batch, query, key, value, choices, attended, hints, not_finite, memory,
        first,
    )  # fmt: skip
    one, counter = np.int64(1), np.zeros(2, np.int64)
    threads = threads if _num_bytes(layer) >= min_bytes else one
    done = True
    if len(query) < threads or threads == 1:
        _take_choices(layer, counter[:1], threads)
    else:
        done = in_parallel(_take_choices, threads, (layer, counter[:1], one))
    places = _places(layer, threads)
    num_parts = places.part_at[-1]
    outs = np.empty((num_parts, *query.shape[1:]), np.float32)
    lses = np.full((num_parts, query.shape[1]), -np.inf, np.float32)
    if threads == 1:
        _take_units(layer, counter[1:], places, outs, lses)
    else:
        done &= in_parallel(_take_units, threads, (layer, counter[1:], places, outs, lses))
    if not done:
        raise MemoryError("decode: no memory for scores or partial results")
    for i in range(len(query)):
        _merge(outs, lses, places.part_at, i, attended)


@njit(**SERIAL)
def _num_bytes(layer: Any) -> Any:
    """Memory that is read, about."""
    shape, batch, choices, total = layer.shape, layer.batch, layer.choices, 0
    for i in range(len(layer.query)):
        near, sinks = np.int64(batch.near_block[i]), np.int64(batch.num_sinks[i])
        window = near if choices.chooses[i] else np.int64(choices.window_first[i])
        blocks = sinks + choices.ids.shape[2] + batch.position[i] // shape.block_size + 1 - window
        total += blocks * 2 * shape.num_kv_heads * shape.block_size * shape.head_dim
        if choices.chooses[i]:
            total += (near - sinks) * layer.anchor_size
    return total * layer.empty.itemsize


@njit(**SERIAL)
def _take_choices(layer: Any, counter: Any, workers: Any) -> None:
    """Takes one session after the other: writes its row and chooses its blocks, each choice by some workers."""
    table, shape, batch, attended = layer.table, layer.shape, layer.batch, layer.attended
    page_size = 2 * shape.num_kv_heads * shape.block_size * shape.head_dim
    i = take(counter)
    while i < len(layer.query):
        attended.failed[i] = MISFIT
        if session_fits(i, table, shape, batch, layer.choices):
            block, row = divmod(batch.position[i], shape.block_size)
            at = block_at(block, i, batch, shape.stripe_blocks, layer.first, page_size)
            most = write_row(layer.memory, at, row, shape, layer.key[i], layer.value[i])
            attended.failed[i] = FINE if most < layer.not_finite else NOT_FINITE_ROW
        if attended.failed[i] == FINE and layer.choices.chooses[i]:
            choose_blocks(
                i,
                table,
                layer.empty,
                layer.anchor_size,
                shape,
                batch,
                layer.query,
                layer.choices,
                layer.hints,
                workers,
            )
        i = take(counter)


class Places(NamedTuple):
    """How what N sessions attend is dealt: units of each piece of each choice, and a part for each piece."""

    unit_at: Any
    """[N * S + 1]: the first unit of each choice of each session."""
    part_at: Any
    """[N + 1]: the first part of each session."""
    shares: Any
    """Units of a piece, each of as many heads."""


@njit(**SERIAL)
def _places(layer: Any, threads: Any) -> Any:
    """Pieces are not divided by heads where there are enough of them for all threads."""
    count, num_choices = len(layer.query), layer.choices.ids.shape[1]
    pieces, part_at = np.zeros(count * num_choices, np.int64), np.zeros(count + 1, np.int64)
    for i in range(count):
        most = np.int64(0)
        for choice in range(num_choices if layer.attended.failed[i] == FINE else 0):
            number = count_pieces(i, choice, layer.shape.block_size, layer.batch, layer.choices)
            pieces[i * num_choices + choice], most = number, max(most, number)
        part_at[i + 1] = part_at[i] + most
    shares = np.int64(1)
    if threads > 1 and pieces.sum() < PIECES_PER_THREAD * threads:
        shares = max(num_choices, layer.shape.num_kv_heads) // num_choices
    unit_at = np.zeros(len(pieces) + 1, np.int64)
    for at in range(len(pieces)):
        unit_at[at + 1] = unit_at[at] + pieces[at] * shares
    return Places(unit_at, part_at, shares)


@njit(**SERIAL)
def _take_units(layer: Any, counter: Any, places: Any, outs: Any, lses: Any) -> None:
    """Takes one unit after the other, and attends its piece with its heads into their part of `outs` and `lses`."""
    shape, batch, num_choices = layer.shape, layer.batch, layer.choices.ids.shape[1]
    num_groups = max(num_choices, shape.num_kv_heads)
    each = num_groups // num_choices
    number, at = take(counter), 0
    while number < places.unit_at[-1]:
        while places.unit_at[at + 1] <= number:
            at += 1
        i, choice = divmod(at, num_choices)
        piece, share = divmod(number - places.unit_at[at], places.shares)
        entries = make_entries(i, choice, piece, shape, batch, layer.choices, layer.first)
        into = places.part_at[i] + piece
        for group in range(each * share // places.shares, each * (share + 1) // places.shares):
            attend_group(
                choice * each + group, num_groups, entries, layer.memory, shape, layer.query[i], batch.scale[i],
                outs[into], lses[into],
            )  # fmt: skip
        number = take(counter)


@njit(**SERIAL)
def _merge(outs: Any, lses: Any, part_at: Any, i: Any, attended: Any) -> None:
    """Joins the parts of session i in their order."""
    begin, end = part_at[i], part_at[i + 1]
    for head in range(outs.shape[1]):
        out = attended.out[i, head]
        if begin == end:
            attended.lse[i, head] = -np.inf
        else:
            attended.lse[i, head] = lses[begin, head]
        for d in range(len(out)):
            out[d] = outs[begin, head, d] if begin < end else np.float32(0)
        for part in range(begin + 1, end):
            attended.lse[i, head] = merge_part(out, attended.lse[i, head], outs[part, head], lses[part, head])
