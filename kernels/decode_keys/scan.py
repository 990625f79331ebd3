"""One pass over the codes of a session's candidates: the keys of the largest values, and what stands for blocks."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from moorage.kernels.compiling import njit
from moorage.kernels.decode_layer.memory import ANCHORS, CODES, page_of
from moorage.kernels.key_select.estimates import Desk, Queries, estimate, of_head
from moorage.kernels.key_select.filtering import list_above
from moorage.kernels.key_select.lanes import load_float, load_word, prefetch_at, store_float, store_word
from moorage.kernels.key_select.rows import row_sums
from moorage.kernels.numba_flags import INLINE, SERIAL
from moorage.kernels.simd import LINE_BYTES, TILE
from moorage.kernels.simd_lanes import LANES
from moorage.kernels.simd_softmax import row_weights

TILE_KEYS = 1024
"""Keys of a tile, about: their values stay in the L1 cache."""
SLICE_TILES = 4
"""Tiles of a slice, which one thread scans for all heads."""
FIRST_BLOCKS = 16
"""Blocks of a list that are asked of the memory while it is made, where they lie scattered."""
MOST = np.float32(60)
"""A weight is at most e to this, times all that is always attended: sums of many stay within fp32."""
_ONE, _LOG2_E, _LOWEST = np.float32(1), np.float32(1.4426950408889634), np.float32(-np.inf)


class Blocks(NamedTuple):
    """Blocks of a session, where some of its KV heads have them, and memory to work in.

    They are listed as they lie in memory: by tiles, of a tile by heads. Behind the last block it is listed again.
    """

    first: Any
    step: Any
    number: Any
    """Blocks first, first + step and so on."""
    heads: Any
    lists: Any
    """[2 n + TILE], n = tiles * heads * blocks of a tile: addresses of mean keys, of codes, and a desk's places."""
    floats: Any
    """The products [G, blocks of a tile + LANES] of a desk, and the values of a tile's keys."""


class Tiles(NamedTuple):
    """The addresses of what Blocks hold, for the work on a tile of one head."""

    means: Any
    codes: Any
    last: Any
    """The last in their lists."""
    desk: Any
    values: Any


class Rows(NamedTuple):
    """Addresses of what a slice's first head has in Slices; those of the next heads lie behind."""

    ids: Any
    values: Any
    list_bytes: Any
    weights: Any
    weight_bytes: Any
    """Bytes of the weights of one query."""
    rest: Any
    sums: Any
    threshold: Any


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
def head_at(block: Any, i: Any, kv_head: Any, layer: Any) -> Any:
    """(memory, place) of a KV head of a block of session i among all heads of all pages."""
    shape, batch = layer.shape, layer.batch
    starts, num_memories = batch.page_start[i], len(layer.table)
    m, page = page_of(block, batch.pages, starts, batch.first_memory[i], num_memories, shape.stripe_blocks)
    return m, page * shape.num_kv_heads + kv_head


@njit(**SERIAL)
def num_candidates(i: Any, layer: Any) -> Any:
    """Blocks of session i that may be selected from."""
    return max(0, np.int64(layer.batch.near_block[i]) - layer.batch.num_sinks[i])


@njit(**SERIAL)
def num_scanned(i: Any, layer: Any) -> Any:
    """Blocks of session i that a KV head scans."""
    return np.int64(layer.kept.blocks.shape[1]) if layer.kept.has[i] else num_candidates(i, layer)


@njit(**SERIAL)
def heads_at_once(i: Any, layer: Any) -> Any:
    """KV heads of session i that scan the same blocks."""
    return np.int64(1 if layer.kept.has[i] else layer.shape.num_kv_heads)


@njit(**INLINE)
def prefetch_lines(at: Any, num_bytes: Any) -> None:
    """Asks the memory for bytes from an address on."""
    for byte in range(0, num_bytes, LINE_BYTES):
        prefetch_at(at + byte)


@njit(**SERIAL)
def find_blocks(first: Any, step: Any, number: Any, i: Any, kv_head: Any, heads: Any, layer: Any) -> Any:
    """The Blocks first, first + step and so on of session i for KV heads [kv_head, kv_head + heads).

    Where the session has a first level, of those that KV head `kv_head` keeps.
    """
    table, head_codes, shape = layer.table, layer.head_codes, layer.shape
    length, group = tile_blocks(shape.block_size), layer.query.shape[1] // shape.num_kv_heads
    head_mean, tiles = shape.head_dim * layer.empty.itemsize, -(-number // length)
    half = tiles * heads * length
    lists = np.empty(2 * half + TILE, np.int64)
    floats = np.empty(group * (length + LANES) + length * shape.block_size, np.float32)
    has_kept, kept = layer.kept.has[i], layer.kept.blocks[i * shape.num_kv_heads + kv_head]
    sinks = np.int64(layer.batch.num_sinks[i])
    for b in range(tiles * length):
        block = first + min(b, number - 1) * step
        if has_kept:
            block = np.int64(kept[block - sinks])
        m, head = head_at(block, i, kv_head, layer)
        if has_kept and b < FIRST_BLOCKS:
            prefetch_lines(table[m, CODES] + head * head_codes, head_codes)
            prefetch_lines(table[m, ANCHORS] + head * head_mean, head_mean)
        at = b // length * heads * length + b % length
        for h in range(heads):
            lists[at + h * length] = table[m, ANCHORS] + (head + h) * head_mean
            lists[at + h * length + half] = table[m, CODES] + (head + h) * head_codes
    return Blocks(first, step, number, heads, lists, floats)


@njit(**INLINE)
def tiles_of(blocks: Any, group: Any, block_size: Any) -> Any:
    """The Tiles of Blocks that the caller holds."""
    half, width = (len(blocks.lists) - TILE) // 2, tile_blocks(block_size) + LANES
    lists, products = blocks.lists.ctypes.data, blocks.floats.ctypes.data
    desk = Desk(lists + 16 * half, products, 4 * width)
    return Tiles(lists, lists + 8 * half, half - 1, desk, products + 4 * group * width)


@njit(**SERIAL)
def to_mean_value(layer: Any) -> Any:
    """Bytes from the codes of one head of a block to the mean of its values, which ends them."""
    return layer.head_codes - 2 * layer.shape.head_dim


@njit(**SERIAL)
def blocks_of_run(r: Any, i: Any, kv_head: Any, layer: Any, runs: Any, blocks: Any) -> Any:
    """(begin, end): which of the blocks of KV head `kv_head` lie in run r of session i."""
    begin, end = runs.bounds[i, r, 0], runs.bounds[i, r, 1]
    if layer.kept.has[i]:
        at, sinks = i * layer.shape.num_kv_heads + kv_head, np.int64(layer.batch.num_sinks[i])
        kept = layer.kept.blocks[at, : layer.kept.counts[at]]
        begin, end = sinks + np.searchsorted(kept, begin), sinks + np.searchsorted(kept, end)
    begin, end = begin - blocks.first, end - blocks.first
    begin, end = max(0, -(-begin // blocks.step)), min(blocks.number, -(-end // blocks.step))
    return begin, max(begin, end)


@njit(**INLINE)
def queries_of(r: Any, i: Any, kv_head: Any, runs: Any, less: Any, group: Any) -> Any:
    """The Queries of a KV head, and of those behind it, in run r of session i; their `less` lies at an address."""
    first = kv_head * group
    return Queries(
        np.int64(group), np.int64(runs.queries.shape[3]), runs.queries[i, r, first].ctypes.data,
        runs.tables[i, r, first].ctypes.data, runs.terms[i, r, first].ctypes.data, less,
    )  # fmt: skip


@njit(**SERIAL)
def scan_unit(unit: Any, layer: Any, runs: Any, slices: Any) -> None:
    """Scans one slice for all heads of its session."""
    i = np.searchsorted(slices.first, unit, side="right") - 1
    heads = heads_at_once(i, layer)
    for kv_head in range(0, layer.shape.num_kv_heads, heads):
        scan_slice(i, unit, np.int64(kv_head), heads, layer, runs, slices)


@njit(**SERIAL)
def scan_slice(i: Any, unit: Any, kv_head: Any, heads: Any, layer: Any, runs: Any, slices: Any) -> None:
    """Lists the keys of a slice above the threshold, and adds up what stands for its blocks.

    For KV heads [kv_head, kv_head + heads) of session i.
    """
    sinks, length = np.int64(layer.batch.num_sinks[i]), slice_blocks(layer.shape.block_size)
    first = sinks + (unit - slices.first[i]) * length
    number = min(length, sinks + num_scanned(i, layer) - first)
    blocks = find_blocks(first, np.int64(1), number, i, kv_head, heads, layer)
    row = unit * layer.shape.num_kv_heads + kv_head
    slices.counts[row : row + heads], slices.rest[row : row + heads] = 0, 0
    slices.rest_sums[row : row + heads] = 0
    tile = tile_blocks(layer.shape.block_size)
    for r in range(runs.bounds.shape[1]):
        begin, end = blocks_of_run(r, i, kv_head, layer, runs, blocks)
        for low in range(begin // tile * tile, end, tile):
            _scan_tile(max(low, begin), min(low + tile, end), r, i, kv_head, row, layer, runs, blocks, slices)


@njit(**SERIAL)
def _scan_tile(
    low: Any, high: Any, r: Any, i: Any, kv_head: Any, row: Any, layer: Any, runs: Any, blocks: Any, slices: Any
) -> None:  # fmt: skip
    """`scan_slice` for blocks [low, high) of a tile."""
    # Whatever the loop reads is a name of its own, since each look into a named tuple counts references.
    size, dim, group = np.int64(layer.shape.block_size), layer.shape.head_dim, slices.less.shape[1]
    empty, halves, counts, to_values = layer.empty, slices.halves, slices.counts, to_mean_value(layer)
    at, head = tiles_of(blocks, group, size), i * layer.shape.num_kv_heads + kv_head
    completes = layer.keys.completes
    first = queries_of(r, i, kv_head, runs, slices.less[head].ctypes.data, group)
    rows = Rows(
        slices.ids[row].ctypes.data, slices.values[row].ctypes.data, 4 * slices.ids.shape[1],
        slices.weights[row].ctypes.data, 4 * slices.weights.shape[2], slices.rest[row].ctypes.data,
        slices.rest_sums[row].ctypes.data, slices.threshold[head:].ctypes.data,
    )  # fmt: skip
    tile, number = tile_blocks(size), (blocks.first - np.int64(layer.batch.num_sinks[i]) + low) * size
    for h in range(blocks.heads):
        queries, start = of_head(first, h), low // tile * tile * (blocks.heads - 1) + h * tile + low
        estimate(
            empty, at.means, at.codes, start, start + high - low, at.last, size, queries, at.desk, at.values
        )
        lists = h * rows.list_bytes + 4 * counts[row + h]
        counts[row + h] += list_above(
            at.values, (high - low) * size // LANES, load_float(rows.threshold + 4 * h), number,
            rows.ids + lists, rows.values + lists,
        )  # fmt: skip
        if completes:
            _add_blocks(
                halves, high - low, low, at.codes + 8 * start, to_values, h, dim, queries, at.desk, rows
            )


@njit(**INLINE)
def _add_blocks(
    halves: Any, count: Any, low: Any, codes: Any, to_values: Any, h: Any, dim: Any, queries: Any, desk: Any,
    rows: Any,
) -> None:  # fmt: skip
    """Adds what stands for `count` blocks from `low` on, whose codes are listed, to that of the h-th head."""
    group, vectors = queries.group, -(-count // LANES)
    weights, rest = rows.weights + h * group * rows.weight_bytes + 4 * low, rows.rest + 4 * h * group
    for g in range(group):
        products, less = desk.products + g * desk.step, load_float(queries.less + 4 * g)
        most = less + MOST
        for b in range(count):
            store_float(products + 4 * b, min(load_float(products + 4 * b), most))
        for b in range(count, vectors * LANES):
            store_float(products + 4 * b, _LOWEST)
        total = row_weights(_ONE, products, vectors, _LOG2_E, less * _LOG2_E, weights + g * rows.weight_bytes)
        store_float(rest + 4 * g, load_float(rest + 4 * g) + total)
    for b in range(count):
        store_word(codes + 8 * b, load_word(codes + 8 * b) + to_values)
    row_sums(halves, group, codes, count, dim, weights, rows.weight_bytes, rows.sums + 4 * h * group * dim)
