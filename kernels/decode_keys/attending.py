"""The selected keys of one KV head: those with the largest values, and attention over them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from moorage.kernels.block_attention.head import cap_logits
from moorage.kernels.decode_keys.runs import turned_queries
from moorage.kernels.decode_keys.scan import find_blocks, scan_slice, slice_blocks, to_mean_value
from moorage.kernels.decode_layer.memory import block_at
from moorage.kernels.half import widen
from moorage.kernels.key_select.filtering import keep_best
from moorage.kernels.key_select.rows import row_logits, row_sums
from moorage.kernels.numba_flags import SERIAL
from moorage.kernels.simd import LINE_BYTES, TILE, prefetch
from moorage.kernels.simd_lanes import LANES
from moorage.kernels.simd_softmax import row_weights

_ONE, _LOG2_E = np.float32(1), np.float32(1.4426950408889634)
AHEAD = 32
"""Rows that are asked of the memory before they are needed."""


class Keys(NamedTuple):
    """Selected keys of one head."""

    positions: Any
    """[n]: tokens, ascending."""
    blocks: Any
    places: Any
    """[n]: their blocks, and where they stand in these."""
    rows: Any
    """[n]: elements of all memory at which the keys begin."""


@njit(**SERIAL)
def attend_head(at: Any, layer: Any, runs: Any, slices: Any) -> None:
    """Selects the keys of one session and KV head, attends them, and joins the result with what was attended."""
    shape, keys = layer.shape, layer.keys
    i, kv_head = divmod(at, shape.num_kv_heads)
    positions = keys.positions[i, kv_head]
    positions[:] = -1
    if slices.first[at] == slices.first[at + 1]:
        return
    selected = _selected_keys(at, i, kv_head, layer, runs, slices)
    count = len(selected.positions)
    positions[:count] = selected.positions
    logits = np.empty((layer.query.shape[1] // shape.num_kv_heads, -(-count // LANES) * LANES), np.float32)
    _exact_logits(i, kv_head, selected, layer, logits)
    _attend(at, i, kv_head, selected, layer, slices, logits)


@njit(**SERIAL)
def _selected_keys(at: Any, i: Any, kv_head: Any, layer: Any, runs: Any, slices: Any) -> Any:
    """The Keys of a head with the largest values."""
    shape, batch, begin, end = layer.shape, layer.batch, slices.first[at], slices.first[at + 1]
    size, first, wanted = shape.block_size, np.int64(batch.num_sinks[i]), layer.keys.positions.shape[2]
    total = slices.counts[begin:end].sum()
    if total < wanted and slices.threshold[at] > -np.inf:
        # The sample of blocks has misjudged the others, so that all keys are listed.
        slices.threshold[at], total = -np.inf, np.int64(0)
        for unit in range(begin, end):
            scan_slice(at, unit, layer, runs, slices)
            total += slices.counts[unit]
    ids, values, count = np.empty(total + LANES, np.int32), np.empty(total + LANES, np.float32), np.int64(0)
    for unit in range(begin, end):
        more = slices.counts[unit]
        ids[count : count + more] = slices.ids[unit, :more]
        values[count : count + more] = slices.values[unit, :more]
        count += more
    count = keep_best(ids, values, count, wanted)
    found = Keys(
        np.empty(count, np.int32),
        np.empty(count, np.int32),
        np.empty(count, np.int32),
        np.empty(count, np.int64),
    )
    page_size, block, start = 2 * shape.num_kv_heads * size * shape.head_dim, np.int64(-1), np.int64(0)
    # Whatever a loop reads is a name of its own, since each look into a named tuple counts references.
    positions, blocks, places, rows = found.positions, found.blocks, found.places, found.rows
    starts = layer.first
    for t in range(count):
        place = np.int64(ids[t]) - (block - first) * size
        if block < 0 or place >= size:
            block = first + ids[t] // size
            place = np.int64(ids[t]) - (block - first) * size
            start = block_at(block, i, batch, shape.stripe_blocks, starts, page_size)
            start += kv_head * size * shape.head_dim
        positions[t], blocks[t], places[t] = ids[t] + first * size, block, place
        rows[t] = start + place * shape.head_dim
    return found


@njit(**SERIAL)
def _exact_logits(i: Any, kv_head: Any, selected: Any, layer: Any, logits: Any) -> None:
    """logits [G, n] of keys, by the part of the position scheme that shows each of them; -inf behind the last."""
    batch, group = layer.batch, len(logits)
    logits[:] = -np.inf
    query = layer.query[i, kv_head * group : (kv_head + 1) * group]
    turned = np.empty(query.shape, np.float32)
    for part in range(batch.num_parts[i]):
        low = np.searchsorted(selected.positions, batch.part_low[i, part])
        high = np.searchsorted(selected.positions, batch.part_high[i, part])
        if low < high:
            turned_queries(query, batch.query_turn[i, part], batch.scale[i], turned)
            _part_logits(turned, selected, low, high, batch.part_rotates[i, part] != 0, layer, logits)
    if batch.softcap[i] > 0:
        for g in range(group):
            cap_logits(logits[g], len(selected.rows), batch.softcap[i])


@njit(**SERIAL)
def _part_logits(
    turned: Any, selected: Any, low: Any, high: Any, rotates: Any, layer: Any, logits: Any
) -> None:
    """logits[:, low:high] of keys that one rotation of the queries meets."""
    keys, memory, rows, blocks, places = (
        layer.keys,
        layer.memory,
        selected.rows,
        selected.blocks,
        selected.places,
    )
    group, dim, half = len(turned), turned.shape[1], keys.offset_turns.shape[2]
    to_values = layer.shape.num_kv_heads * layer.shape.block_size * dim
    cycle = np.int32(layer.batch.period // layer.shape.block_size)
    if half % LANES:
        for t in range(low, high):
            _plain_logits(turned, t, selected, cycle, rotates, layer, logits)
        return
    item, angle_bytes, line = memory.itemsize, 8 * half, LINE_BYTES // memory.itemsize
    lists, found, start = (
        np.empty((3, TILE), np.int64),
        np.empty((group, TILE), np.float32),
        memory.ctypes.data,
    )
    base_at, offset_at = keys.base_turns.ctypes.data, keys.offset_turns.ctypes.data
    where, into = lists.ctypes.data, found.ctypes.data
    for t in range(low, min(high, low + AHEAD)):
        for d in range(0, dim, line):
            prefetch(memory, rows[t] + d)
    for t in range(low, high, TILE):
        for r in range(TILE):
            at = min(t + r, high - 1)
            block = blocks[at] % cycle if cycle else blocks[at]
            lists[0, r] = start + rows[at] * item
            lists[1, r] = base_at + block * angle_bytes
            lists[2, r] = offset_at + places[at] * angle_bytes
            ahead = rows[min(at + AHEAD, high - 1)]
            for d in range(0, dim, line):
                prefetch(memory, ahead + d)
                prefetch(memory, ahead + to_values + d)
        row_logits(
            memory, group, where, where + 8 * TILE, where + 16 * TILE, dim, half, rotates, turned.ctypes.data, into,
            np.int64(4 * TILE),
        )  # fmt: skip
        for g in range(group):
            for r in range(min(TILE, high - t)):
                logits[g, t + r] = found[g, r]


@njit(**SERIAL)
def _plain_logits(
    turned: Any, t: Any, selected: Any, cycle: Any, rotates: Any, layer: Any, logits: Any
) -> None:
    """logits[:, t] of one key, for any number of rotated channels."""
    keys, memory, row = layer.keys, layer.memory, selected.rows[t]
    half = keys.offset_turns.shape[2] if rotates else 0
    block, place = selected.blocks[t] % cycle if cycle else selected.blocks[t], selected.places[t]
    for g in range(len(turned)):
        total = np.float32(0)
        for d in range(half):
            c, s = keys.base_turns[block, 0, d], keys.base_turns[block, 1, d]
            oc, os = keys.offset_turns[place, 0, d], keys.offset_turns[place, 1, d]
            c, s = c * oc - s * os, s * oc + c * os
            low, high = widen(memory[row + d]), widen(memory[row + half + d])
            total += turned[g, d] * (low * c - high * s) + turned[g, half + d] * (high * c + low * s)
        for d in range(2 * half, turned.shape[1]):
            total += turned[g, d] * widen(memory[row + d])
        logits[g, t] = total


@njit(**SERIAL)
def _attend(at: Any, i: Any, kv_head: Any, selected: Any, layer: Any, slices: Any, logits: Any) -> None:
    """Joins the selected keys, and what stands for all blocks, with what the head has attended so far."""
    shape, attended, less = layer.shape, layer.attended, slices.less[at]
    group, dim, count = len(logits), shape.head_dim, len(selected.rows)
    memory, to_values = layer.memory, shape.num_kv_heads * shape.block_size * dim
    places, rows, item, start = np.empty(count, np.int64), selected.rows, memory.itemsize, memory.ctypes.data
    for t in range(count):
        places[t] = start + (rows[t] + to_values) * item
    out, own, vectors = (
        np.zeros((group, dim), np.float32),
        np.empty(group, np.float32),
        logits.shape[1] // LANES,
    )
    for g in range(group):
        row = logits[g].ctypes.data
        own[g] = row_weights(_ONE, row, vectors, _LOG2_E, less[g] * _LOG2_E, row)
    _add_rows(memory, places, logits, out)
    rest = _add_rest(at, i, kv_head, selected, layer, slices, out)
    outs, lses, own_lses = attended.out[i], attended.lse[i], layer.keys.lse[i]
    for g in range(group):
        head = kv_head * group + g
        own_lses[head] = less[g] + np.log(_ONE + own[g])
        lses[head] = less[g] + np.log(_ONE + own[g] + rest[g])
        share = _ONE / (_ONE + own[g] + rest[g])
        for d in range(dim):
            outs[head, d] = (outs[head, d] + out[g, d]) * share


@njit(**SERIAL)
def _add_rest(at: Any, i: Any, kv_head: Any, selected: Any, layer: Any, slices: Any, out: Any) -> Any:
    """Adds what stands for all blocks to out [G, D], less the keys that are selected; the weights [G] of that."""
    (group, dim), blocks, shape = out.shape, selected.blocks, layer.shape
    rest, distinct = np.zeros(group, np.float32), np.int64(0)
    begin, end, rests, sums, weights = (
        slices.first[at],
        slices.first[at + 1],
        slices.rest,
        slices.rest_sums,
        slices.weights,
    )
    for unit in range(begin, end):
        for g in range(group):
            rest[g] += rests[unit, g]
            for d in range(dim):
                out[g, d] += sums[unit, g, d]
    numbers, counts = np.empty(len(blocks), np.int64), np.zeros(len(blocks), np.float32)
    for t in range(len(blocks)):
        if t == 0 or blocks[t] != blocks[t - 1]:
            numbers[distinct] = blocks[t]
            distinct += 1
        counts[distinct - 1] += _ONE
    codes = find_blocks(numbers[:distinct], i, kv_head, layer).codes
    less, length = np.empty((group, distinct), np.float32), slice_blocks(shape.block_size)
    sinks, to_means = np.int64(layer.batch.num_sinks[i]), to_mean_value(layer)
    for b in range(distinct):
        unit, place = divmod(numbers[b] - sinks, length)
        codes[b] += to_means
        for g in range(group):
            less[g, b] = -counts[b] * weights[begin + unit, g, place]
            rest[g] += less[g, b]
    _add_rows(slices.halves, codes, less, out)
    return rest


@njit(**SERIAL)
def _add_rows(like: Any, places: Any, weights: Any, out: Any) -> None:
    """Adds to out [G, D] the rows at the addresses `places` [n], of the type of `like`, each times weights [G, n].

    The caller holds the arrays until they have been read, as it would not where it gave their addresses alone.
    """
    group, dim = out.shape
    row_sums(
        like,
        group,
        places.ctypes.data,
        len(places),
        dim,
        weights.ctypes.data,
        4 * weights.shape[1],
        out.ctypes.data,
    )
