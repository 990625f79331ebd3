"""One pass over the codes of a head's candidates: the keys that may matter most, and what stands for all blocks."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from moorage.kernels.decode_layer.memory import ANCHORS, CODES, page_of
from moorage.kernels.key_select.estimates import estimate, make_desk
from moorage.kernels.key_select.filtering import list_above, worst_of_best
from moorage.kernels.key_select.rows import row_sums
from moorage.kernels.numba_flags import SERIAL
from moorage.kernels.simd_lanes import LANES
from moorage.kernels.vector_math import exp32

TILE_KEYS = 1024
"""Keys of a tile, about: their estimated logits stay in the L1 cache."""
SLICE_TILES = 4
"""Tiles of a slice, which one thread scans."""
SAMPLE_STEP, SAMPLE_BLOCKS = 8, 256
"""One block of so many gives the threshold, and no more than so many blocks."""
SURPLUS = np.float32(2)
"""About so many keys lie above the threshold for each one selected. Blocks differ, and too few cost a second pass."""


class Blocks(NamedTuple):
    """Blocks of one head that are scanned."""

    numbers: Any
    """[n], ascending."""
    means: Any
    codes: Any
    """[n]: addresses of their mean keys and codes."""


@njit(**SERIAL)
def tile_blocks(block_size: Any) -> Any:
    """Blocks of a tile."""
    return max(1, TILE_KEYS // block_size)


@njit(**SERIAL)
def slice_blocks(block_size: Any) -> Any:
    """Blocks of a slice."""
    return SLICE_TILES * tile_blocks(block_size)


@njit(**SERIAL)
def list_length(block_size: Any) -> Any:
    """Elements of the lists of a slice."""
    return slice_blocks(block_size) * block_size + LANES


@njit(**SERIAL)
def find_blocks(numbers: Any, i: Any, kv_head: Any, layer: Any) -> Any:
    """The Blocks of these numbers of session i."""
    means, codes = np.empty(len(numbers), np.int64), np.empty(len(numbers), np.int64)
    # Whatever a loop reads is a name of its own, since each look into a named tuple counts references.
    table, shape, batch, head_codes = layer.table, layer.shape, layer.batch, layer.head_codes
    pages, starts, first_memory = batch.pages, batch.page_start[i], batch.first_memory[i]
    num_memories, head_mean = len(table), shape.head_dim * layer.empty.itemsize
    for at in range(len(numbers)):
        m, page = page_of(numbers[at], pages, starts, first_memory, num_memories, shape.stripe_blocks)
        head = page * shape.num_kv_heads + kv_head
        codes[at] = table[m, CODES] + head * head_codes
        means[at] = table[m, ANCHORS] + head * head_mean
    return Blocks(numbers, means, codes)


@njit(**SERIAL)
def to_mean_value(layer: Any) -> Any:
    """Bytes from the codes of one head of a block to the mean of its values, which ends them."""
    return layer.head_codes - 2 * layer.shape.head_dim


@njit(**SERIAL)
def _blocks_of_run(r: Any, i: Any, runs: Any, blocks: Any) -> Any:
    """(begin, end) of those of `blocks`, which ascend, that lie in run r of session i."""
    first, last = runs.bounds[i, r, 0], runs.bounds[i, r, 1]
    begin = np.searchsorted(blocks, first)
    return begin, max(begin, np.searchsorted(blocks, last))


@njit(**SERIAL)
def _set_terms(r: Any, i: Any, kv_head: Any, runs: Any, desk: Any) -> Any:
    """Prepares the desk for the queries of a run; the addresses of these and of their tables."""
    head = kv_head * desk.at.group
    for g in range(desk.at.group):
        desk.terms[g, 0], desk.terms[g, 1] = runs.terms[i, r, head + g, 0], runs.terms[i, r, head + g, 1]
    return runs.queries[i, r, head:].ctypes.data, runs.tables[i, r, head:].ctypes.data


@njit(**SERIAL)
def set_threshold(at: Any, layer: Any, runs: Any, slices: Any) -> None:
    """Sets the threshold of one session's head: by a sample of blocks, more keys lie above it than are selected."""
    slices.threshold[at] = -np.inf
    i, kv_head = divmod(at, layer.shape.num_kv_heads)
    first, size, wanted = (
        np.int64(layer.batch.num_sinks[i]),
        layer.shape.block_size,
        layer.keys.positions.shape[2],
    )
    total: Any = np.int64(layer.batch.near_block[i]) - first
    step = max(SAMPLE_STEP, -(-total // SAMPLE_BLOCKS))
    number = -(-total // step)
    rank = np.int64(SURPLUS * np.float32(wanted * number) / np.float32(max(1, total))) + 8
    if slices.first[at] == slices.first[at + 1] or rank >= number * size:
        return
    less, blocks = slices.less[at], find_blocks(first + np.arange(number) * step, i, kv_head, layer)
    desk = make_desk(len(less), layer.shape.head_dim, tile_blocks(size), size)
    values = np.full(number * size, -np.inf, np.float32)
    for r in range(runs.bounds.shape[1]):
        begin, end = _blocks_of_run(r, i, runs, blocks.numbers)
        if begin < end:
            queries, tables = _set_terms(r, i, kv_head, runs, desk)
            _sample_run(begin, end, queries, tables, layer.empty, size, less, blocks, desk, values)
    slices.threshold[at] = worst_of_best(values, number * size, rank)[0]


@njit(**SERIAL)
def _sample_run(
    begin: Any, end: Any, queries: Any, tables: Any, empty: Any, size: Any, less: Any, blocks: Any, desk: Any,
    values: Any,
) -> None:  # fmt: skip
    """The values of the keys of blocks [begin, end) among `blocks`."""
    means, codes, place, logits, step = blocks.means, blocks.codes, desk.at, desk.logits, tile_blocks(size)
    for low in range(begin, end, step):
        high = min(low + step, end)
        estimate(empty, means, codes, low, high, low, size, queries, tables, place)
        into = values[low * size : high * size]
        for g in range(place.group):
            row, base = logits[g], less[g]
            for t in range(len(into)):
                value = row[t] - base
                into[t] = value if value > into[t] else into[t]


@njit(**SERIAL)
def scan_unit(number: Any, layer: Any, runs: Any, slices: Any) -> None:
    """Runs `scan_slice` for one unit of work.

    Units are numbered so that the heads of the same blocks follow each other, since their codes lie side by side.
    """
    heads, first = layer.shape.num_kv_heads, slices.first
    i = (np.searchsorted(first, number, side="right") - 1) // heads
    place, head = divmod(number - first[i * heads], heads)
    scan_slice(i * heads + head, first[i * heads + head] + place, layer, runs, slices)


@njit(**SERIAL)
def scan_slice(at: Any, unit: Any, layer: Any, runs: Any, slices: Any) -> None:
    """Lists the keys of one slice of a head above the threshold, and adds up what stands for its blocks."""
    i, kv_head = divmod(at, layer.shape.num_kv_heads)
    sinks, length = np.int64(layer.batch.num_sinks[i]), slice_blocks(layer.shape.block_size)
    first = sinks + (unit - slices.first[at]) * length
    number = min(length, np.int64(layer.batch.near_block[i]) - first)
    blocks, found = find_blocks(first + np.arange(number), i, kv_head, layer), np.int64(0)
    size = layer.shape.block_size
    desk = make_desk(slices.less.shape[1], layer.shape.head_dim, tile_blocks(size), size)
    slices.weights[unit], slices.rest[unit], slices.rest_sums[unit] = 0, 0, 0
    for r in range(runs.bounds.shape[1]):
        begin, end = _blocks_of_run(r, i, runs, blocks.numbers)
        if begin < end:
            queries, tables = _set_terms(r, i, kv_head, runs, desk)
            found += _scan_run(
                begin, end, queries, tables, at, unit, first - sinks, found, layer, blocks, desk, slices
            )
    slices.counts[unit] = found


@njit(**SERIAL)
def _scan_run(
    begin: Any, end: Any, queries: Any, tables: Any, at: Any, unit: Any, first: Any, listed: Any, layer: Any,
    blocks: Any, desk: Any, slices: Any,
) -> Any:  # fmt: skip
    """`scan_slice` for blocks [begin, end) among `blocks`, whose first is candidate `first`; the number listed."""
    # Whatever the loop reads is a name of its own, since each look into a named tuple counts references.
    empty, size, dim, halves = layer.empty, layer.shape.block_size, layer.shape.head_dim, slices.halves
    means, codes, place, products, less = blocks.means, blocks.codes, desk.at, desk.products, slices.less[at]
    weights, rest, threshold = slices.weights[unit], slices.rest[unit], slices.threshold[at]
    group, step = desk.at.group, tile_blocks(size)
    less_at, sums_at, codes_at = less.ctypes.data, slices.rest_sums[unit].ctypes.data, codes.ctypes.data
    ids_at, values_at = (
        slices.ids[unit].ctypes.data + 4 * listed,
        slices.values[unit].ctypes.data + 4 * listed,
    )
    to_means, found = to_mean_value(layer), np.int64(0)
    for low in range(begin, end, step):
        high = min(low + step, end)
        estimate(empty, means, codes, low, high, low, size, queries, tables, place)
        found += list_above(
            place.logits, place.logit_bytes, less_at, group, (high - low) * size // LANES, threshold,
            (first + low) * size, ids_at + 4 * found, values_at + 4 * found,
        )  # fmt: skip
        for g in range(group):
            row, base, total, kept = products[g], less[g], np.float32(0), weights[g, low:high]
            for b in range(high - low):
                kept[b] = exp32(row[b] - base)
            for b in range(high - low):
                row[b] = np.float32(size) * kept[b]
                total += row[b]
            rest[g] += total
        for b in range(low, high):
            codes[b] += to_means
        row_sums(
            halves, group, codes_at + 8 * low, high - low, dim, place.products, place.product_bytes, sums_at
        )
    return found
