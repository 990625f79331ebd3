"""One pass over the codes of a head's candidates: the keys that may matter most, and what stands for all blocks."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from moorage.kernels.decode_layer.memory import ANCHORS, CODES
from moorage.kernels.key_select.estimates import Workplace, estimate
from moorage.kernels.key_select.filtering import list_above, worst_of_best
from moorage.kernels.key_select.rows import row_sums
from moorage.kernels.numba_flags import SERIAL
from moorage.kernels.simd import TILE
from moorage.kernels.simd_lanes import LANES
from moorage.kernels.vector_math import exp32

TILE_KEYS = 1024
"""Keys of a tile, about: their estimated logits stay in the L1 cache."""
SLICE_TILES = 4
"""Tiles of a slice, which one thread scans."""
SAMPLE_STEP, SAMPLE_BLOCKS = 8, 256
"""One block of so many gives the threshold, and no more than so many blocks."""
SURPLUS = np.float32(2)
"""Keys above the threshold for each one selected, about: blocks differ, and too few cost a second pass."""


class Desk(NamedTuple):
    """What a scan works on."""

    blocks: Any
    """[n]: numbers of the blocks that are scanned, tile by tile."""
    means: Any
    codes: Any
    """[n]: addresses of the blocks' mean keys and codes."""
    terms: Any
    """[G, 3]"""
    rows: Any
    products: Any
    """[G, blocks of a tile + TILE]"""
    logits: Any
    """[G, keys of a tile]"""
    at: Any
    """The Workplace of the last four."""


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
def _desk(group: Any, number: Any, layer: Any) -> Any:
    """A desk for `number` blocks."""
    blocks = tile_blocks(layer.shape.block_size)
    terms, rows = np.empty((group, 3), np.float32), np.empty(TILE, np.int64)
    products = np.empty((group, blocks + TILE), np.float32)
    logits = np.empty((group, blocks * layer.shape.block_size), np.float32)
    at = Workplace(
        group, layer.shape.head_dim, terms.ctypes.data, rows.ctypes.data, products.ctypes.data, 4 * products.shape[1],
        logits.ctypes.data, 4 * logits.shape[1],
    )  # fmt: skip
    return Desk(
        np.empty(number, np.int64), np.empty(number, np.int64), np.empty(number, np.int64), terms, rows, products,
        logits, at,
    )  # fmt: skip


@njit(**SERIAL)
def mean_value_at(code: Any, shape: Any) -> Any:
    """The address of the mean value of a block whose head's codes lie at an address."""
    return code + head_code_bytes(shape) - 2 * shape.head_dim


@njit(**SERIAL)
def find_blocks(blocks: Any, i: Any, kv_head: Any, layer: Any, means: Any, codes: Any) -> None:
    """The addresses of one head's mean keys and codes of some blocks of session i."""
    table, shape, batch = layer.table, layer.shape, layer.batch
    pages, page_start, first_memory = batch.pages, batch.page_start, batch.first_memory[i]
    num_memories, length = len(table), shape.stripe_blocks
    head_codes, head_mean = head_code_bytes(shape), shape.head_dim * layer.empty.itemsize
    for at in range(len(blocks)):
        m, local = np.int64(0), np.int64(blocks[at])
        if num_memories > 1:
            stripe, within = divmod(local, length)
            turn, shard = divmod(stripe, num_memories)
            m, local = (first_memory + shard) % num_memories, turn * length + within
        head = np.int64(pages[page_start[i, m] + local]) * shape.num_kv_heads + kv_head
        codes[at] = table[m, CODES] + head * head_codes
        means[at] = table[m, ANCHORS] + head * head_mean


@njit(**SERIAL)
def head_code_bytes(shape: Any) -> Any:
    """Bytes of the codes of one head of a block, see `kernels.key_codes`."""
    return shape.block_size * (shape.head_dim // 8 + 2) + 2 * shape.head_dim


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
    """A threshold of one session's head that somewhat more keys are above than it selects, by a sample of blocks."""
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
    desk, less = _desk(slices.less.shape[1], number, layer), slices.less[at]
    for b in range(number):
        desk.blocks[b] = first + b * step
    find_blocks(desk.blocks, i, kv_head, layer, desk.means, desk.codes)
    values = np.full(number * size, -np.inf, np.float32)
    for r in range(runs.bounds.shape[1]):
        begin, end = _blocks_of_run(r, i, runs, desk.blocks)
        if begin < end:
            _sample_run(
                begin, end, *_set_terms(r, i, kv_head, runs, desk), layer.empty, size, less, desk, values
            )
    slices.threshold[at] = worst_of_best(values, number * size, rank)[0]


@njit(**SERIAL)
def _sample_run(
    begin: Any, end: Any, queries: Any, tables: Any, empty: Any, size: Any, less: Any, desk: Any, values: Any
) -> None:
    """The values of the keys of the blocks [begin, end) of a desk."""
    means, codes, place, logits, step = desk.means, desk.codes, desk.at, desk.logits, tile_blocks(size)
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
    """`scan_slice` of one of all slices: the heads of the same blocks, which lie side by side, follow each other."""
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
    desk, found = _desk(slices.less.shape[1], number, layer), np.int64(0)
    for b in range(number):
        desk.blocks[b] = first + b
    find_blocks(desk.blocks, i, kv_head, layer, desk.means, desk.codes)
    slices.weights[unit], slices.rest[unit], slices.rest_sums[unit] = 0, 0, 0
    for r in range(runs.bounds.shape[1]):
        begin, end = _blocks_of_run(r, i, runs, desk.blocks)
        if begin < end:
            queries, tables = _set_terms(r, i, kv_head, runs, desk)
            found += _scan_run(
                begin, end, queries, tables, at, unit, first - sinks, found, layer, desk, slices
            )
    slices.counts[unit] = found


@njit(**SERIAL)
def _scan_run(
    begin: Any, end: Any, queries: Any, tables: Any, at: Any, unit: Any, first: Any, listed: Any, layer: Any,
    desk: Any, slices: Any,
) -> Any:  # fmt: skip
    """`scan_slice` for the blocks [begin, end) of a desk, whose block 0 is candidate `first`; the number listed."""
    # Whatever the loop reads is a name of its own, since each look into a named tuple counts references.
    empty, size, dim, halves = layer.empty, layer.shape.block_size, layer.shape.head_dim, slices.halves
    means, codes, place, products, less = desk.means, desk.codes, desk.at, desk.products, slices.less[at]
    weights, rest, threshold = slices.weights[unit], slices.rest[unit], slices.threshold[at]
    group, step = desk.at.group, tile_blocks(size)
    less_at, sums_at, codes_at = less.ctypes.data, slices.rest_sums[unit].ctypes.data, codes.ctypes.data
    ids_at, values_at = (
        slices.ids[unit].ctypes.data + 4 * listed,
        slices.values[unit].ctypes.data + 4 * listed,
    )
    to_means, found = mean_value_at(0, layer.shape), np.int64(0)
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
