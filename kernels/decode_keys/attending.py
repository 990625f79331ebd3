"""Attention over the selected keys of a head, a chunk of them at a time, and what is left of their blocks."""

from __future__ import annotations

from typing import Any

import numpy as np

from moorage.kernels.block_attention.head import cap_logits
from moorage.kernels.compiling import njit
from moorage.kernels.decode_keys.chunk_rows import CHUNK, row_at, rows_of_chunk
from moorage.kernels.decode_keys.runs import turned_queries
from moorage.kernels.decode_keys.scan import MOST, head_at, slice_blocks, to_mean_value
from moorage.kernels.decode_layer.memory import CODES
from moorage.kernels.half import widen
from moorage.kernels.key_select.lanes import prefetch_at
from moorage.kernels.key_select.rows import row_logits, row_sums
from moorage.kernels.numba_flags import SERIAL
from moorage.kernels.simd import LINE_BYTES, TILE
from moorage.kernels.simd_lanes import LANES
from moorage.kernels.simd_softmax import row_weights

_ONE, _LOG2_E = np.float32(1), np.float32(1.4426950408889634)


@njit(**SERIAL)
def num_chunks(wanted: Any) -> Any:
    """Chunks of `wanted` keys."""
    return -(-wanted // CHUNK)


@njit(**SERIAL)
def attend_chunk(unit: Any, layer: Any, slices: Any, selected: Any, parts: Any) -> None:
    """Attends one chunk of the selected keys of a session and KV head."""
    at, chunk = divmod(unit, num_chunks(layer.keys.positions.shape[2]))
    low, high = chunk * CHUNK, min(selected.counts[at], (chunk + 1) * CHUNK)
    parts.own[unit], parts.less[unit], parts.sums[unit] = 0, 0, 0
    if low >= high:
        return
    i, kv_head = divmod(at, layer.shape.num_kv_heads)
    logits = np.full((slices.less.shape[1], CHUNK), -np.inf, np.float32)
    rows = rows_of_chunk(layer.packed, i, kv_head, low, high, selected, layer)
    _exact_logits(i, kv_head, low, high, rows, selected, layer, logits)
    _add_values(unit, at, high - low, rows, slices, logits, parts)
    if layer.keys.completes:
        _take_from_blocks(unit, i, kv_head, low, high, selected, layer, slices, parts)


@njit(**SERIAL)
def _exact_logits(
    i: Any, kv_head: Any, low: Any, high: Any, rows: Any, selected: Any, layer: Any, logits: Any
) -> None:
    """logits [G, CHUNK] of keys [low, high), by the part of the position scheme that shows each of them."""
    batch, group = layer.batch, len(logits)
    query, positions = (
        layer.query[i, kv_head * group : (kv_head + 1) * group],
        layer.keys.positions[i, kv_head, low:high],
    )
    turned = np.empty(query.shape, np.float32)
    for part in range(batch.num_parts[i]):
        begin = low + np.searchsorted(positions, batch.part_low[i, part])
        end = low + np.searchsorted(positions, batch.part_high[i, part])
        if begin < end:
            turned_queries(query, batch.query_turn[i, part], batch.scale[i], turned)
            rotates, at = batch.part_rotates[i, part] != 0, i * layer.shape.num_kv_heads + kv_head
            _part_logits(turned, at, low, begin, end, rotates, rows, selected, layer, logits)
    if batch.softcap[i] > 0:
        for g in range(group):
            cap_logits(logits[g], high - low, batch.softcap[i])


@njit(**SERIAL)
def _part_logits(
    turned: Any, at: Any, first: Any, low: Any, high: Any, rotates: Any, rows: Any, selected: Any, layer: Any,
    logits: Any,
) -> None:  # fmt: skip
    """logits of keys [low, high), from key `first` on, that one rotation of the queries meets."""
    keys, blocks, places = layer.keys, selected.blocks[at], selected.places[at]
    like, ahead, key_at, value_at = rows.like, rows.ahead, rows.places[0], rows.places[1]
    group, dim, half = len(turned), turned.shape[1], keys.offset_turns.shape[2]
    cycle = np.int32(layer.batch.period // layer.shape.block_size)
    if half % LANES:
        for t in range(low, high):
            stored = row_at(key_at[t - first], dim, like)
            _plain_logits(turned, t - first, stored, blocks[t], places[t], cycle, rotates, layer, logits)
        return
    angle_bytes, line, num_bytes = 8 * half, np.int64(LINE_BYTES), dim * like.itemsize
    lists, found = np.empty((3, TILE), np.int64), np.empty((group, TILE), np.float32)
    base_at, offset_at = keys.base_turns.ctypes.data, keys.offset_turns.ctypes.data
    where, into, width = lists.ctypes.data, logits.ctypes.data, 4 * logits.shape[1]
    for t in range(low, min(high, low + ahead)):
        for d in range(0, num_bytes, line):
            prefetch_at(key_at[t - first] + d)
    for t in range(low, high, TILE):
        for r in range(TILE):
            key = min(t + r, high - 1)
            block = blocks[key] % cycle if cycle else blocks[key]
            lists[0, r] = key_at[key - first]
            lists[1, r] = base_at + block * angle_bytes
            lists[2, r] = offset_at + places[key] * angle_bytes
            coming = key_at[min(key + ahead, high - 1) - first]
            for d in range(0, num_bytes if ahead else np.int64(0), line):
                prefetch_at(coming + d)
                prefetch_at(value_at[key - first] + d)
        # The last tile may have fewer keys, and what follows them in a row belongs to others.
        whole = high - t >= TILE
        target, step = (into + 4 * (t - first), width) if whole else (found.ctypes.data, 4 * TILE)
        row_logits(
            like, group, where, where + 8 * TILE, where + 16 * TILE, dim, half, rotates, turned.ctypes.data, target,
            np.int64(step),
        )  # fmt: skip
        if not whole:
            for g in range(group):
                logits[g, t - first : high - first] = found[g, : high - t]


@njit(**SERIAL)
def _plain_logits(
    turned: Any, t: Any, stored: Any, block: Any, place: Any, cycle: Any, rotates: Any, layer: Any, logits: Any
) -> None:  # fmt: skip
    """logits[:, t] of one key, for any number of rotated channels."""
    keys = layer.keys
    half = keys.offset_turns.shape[2] if rotates else 0
    block = block % cycle if cycle else block
    for g in range(len(turned)):
        total = np.float32(0)
        for d in range(half):
            c, s = keys.base_turns[block, 0, d], keys.base_turns[block, 1, d]
            oc, os = keys.offset_turns[place, 0, d], keys.offset_turns[place, 1, d]
            c, s = c * oc - s * os, s * oc + c * os
            low, high = widen(stored[d]), widen(stored[half + d])
            total += turned[g, d] * (low * c - high * s) + turned[g, half + d] * (high * c + low * s)
        for d in range(2 * half, turned.shape[1]):
            total += turned[g, d] * widen(stored[d])
        logits[g, t] = total


@njit(**SERIAL)
def _add_values(unit: Any, at: Any, count: Any, rows: Any, slices: Any, logits: Any, parts: Any) -> None:
    """Turns logits into weights, and sums the keys' values by them."""
    less = slices.less[at]
    for g in range(len(logits)):
        most = less[g] + MOST
        for t in range(count):
            logits[g, t] = min(logits[g, t], most)
        row = logits[g].ctypes.data
        parts.own[unit, g] = row_weights(_ONE, row, CHUNK // LANES, _LOG2_E, less[g] * _LOG2_E, row)
    _add_rows(rows.like, rows.places[1], logits, parts.sums[unit])


@njit(**SERIAL)
def _take_from_blocks(
    unit: Any, i: Any, kv_head: Any, low: Any, high: Any, selected: Any, layer: Any, slices: Any, parts: Any
) -> None:  # fmt: skip
    """Takes the selected keys from what stands for all keys of their blocks."""
    heads, length = np.int64(layer.shape.num_kv_heads), slice_blocks(layer.shape.block_size)
    blocks, weights, group = selected.blocks[i * heads + kv_head], slices.weights, slices.less.shape[1]
    sinks, to_means, distinct = np.int64(layer.batch.num_sinks[i]), to_mean_value(layer), np.int64(-1)
    table, head_codes, first = layer.table, layer.head_codes, slices.first[i]
    places, less = np.empty(high - low, np.int64), np.empty((group, high - low), np.float32)
    for t in range(low, high):
        if t == low or blocks[t] != blocks[t - 1]:
            distinct += 1
            m, head = head_at(np.int64(blocks[t]), i, kv_head, layer)
            places[distinct] = table[m, CODES] + head * head_codes + to_means
            unit_of, place = divmod(np.int64(blocks[t]) - sinks, length)
            own = weights[(first + unit_of) * heads + kv_head, :, place]
            for g in range(group):
                less[g, distinct] = -own[g]
        else:
            for g in range(group):
                less[g, distinct] -= own[g]
    for g in range(group):
        parts.less[unit, g] = less[g, : distinct + 1].sum()
    _add_rows(slices.halves, places[: distinct + 1], less, parts.sums[unit])


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


@njit(**SERIAL)
def join_head(at: Any, layer: Any, slices: Any, parts: Any) -> None:
    """Joins the selected keys of a head, and what stands for all blocks, with what it has attended so far."""
    heads = np.int64(layer.shape.num_kv_heads)
    i, kv_head = divmod(at, heads)
    begin, end = slices.first[i], slices.first[i + 1]
    if begin == end:
        return
    group, dim = slices.rest_sums.shape[1:]
    size, own, rest = (
        np.float32(layer.shape.block_size),
        np.zeros(group, np.float32),
        np.zeros(group, np.float32),
    )
    out, sums, less = np.zeros((group, dim), np.float32), slices.rest_sums, slices.less[at]
    for row in range(begin * heads + kv_head, end * heads + kv_head, heads):
        for g in range(group):
            rest[g] += size * slices.rest[row, g]
            for d in range(dim):
                out[g, d] += size * sums[row, g, d]
    chunks, sums = num_chunks(layer.keys.positions.shape[2]), parts.sums
    for unit in range(at * chunks, (at + 1) * chunks):
        for g in range(group):
            own[g] += parts.own[unit, g]
            rest[g] += parts.less[unit, g]
            for d in range(dim):
                out[g, d] += sums[unit, g, d]
    outs, lses, own_lses = layer.attended.out[i], layer.attended.lse[i], layer.keys.lse[i]
    for g in range(group):
        head = kv_head * group + g
        own_lses[head] = less[g] + np.log(_ONE + own[g])
        lses[head] = less[g] + np.log(_ONE + own[g] + rest[g])
        share = _ONE / (_ONE + own[g] + rest[g])
        for d in range(dim):
            outs[head, d] = (outs[head, d] + out[g, d]) * share
