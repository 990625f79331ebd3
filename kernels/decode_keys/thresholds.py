"""The threshold of each head: what a little more keys reach than it selects, by a sample of its blocks."""

from __future__ import annotations

from typing import Any

import numpy as np

from moorage.kernels.compiling import njit
from moorage.kernels.decode_keys.scan import (
    blocks_of_run,
    find_blocks,
    heads_at_once,
    num_scanned,
    queries_of,
    tile_blocks,
    tiles_of,
)
from moorage.kernels.key_select.estimates import estimate, of_head
from moorage.kernels.key_select.filtering import about_reached
from moorage.kernels.numba_flags import SERIAL

SAMPLE_STEP, SAMPLE_BLOCKS = 8, 128
"""One block of so many gives the threshold, and no more than so many blocks."""
KEPT_SAMPLE_STEP = 16
"""The same where blocks lie scattered, each of which takes a while to come."""
SURPLUS = np.float32(2)
"""About so many keys lie above the threshold for each one selected. Blocks differ, and too few cost a second pass."""
PIECES = 8
"""Parts of a sample, each read by one thread."""


@njit(**SERIAL)
def sample_of(i: Any, layer: Any) -> Any:
    """(number of blocks, step between them, rank of the value that is the threshold) of session i's sample."""
    total = num_scanned(i, layer)
    step = max(KEPT_SAMPLE_STEP if layer.kept.has[i] else SAMPLE_STEP, -(-total // SAMPLE_BLOCKS))
    number, wanted = -(-total // step), layer.keys.positions.shape[2]
    return number, step, np.int64(SURPLUS * np.float32(wanted * number) / np.float32(max(1, total))) + 8


@njit(**SERIAL)
def needs_threshold(i: Any, layer: Any, slices: Any) -> Any:
    """Whether session i selects so few of its candidates that a threshold serves."""
    number, _, rank = sample_of(i, layer)
    return slices.first[i] < slices.first[i + 1] and rank < number * layer.shape.block_size


@njit(**SERIAL)
def sample_piece(unit: Any, layer: Any, runs: Any, slices: Any, samples: Any) -> None:
    """samples [N * Hkv, most keys] of one piece of a session's sample, for all heads."""
    i, piece = divmod(unit, PIECES)
    if not needs_threshold(i, layer, slices):
        return
    number, step, _ = sample_of(i, layer)
    first, end = number * piece // PIECES, number * (piece + 1) // PIECES
    heads, size = heads_at_once(i, layer), np.int64(layer.shape.block_size)
    start, tile = np.int64(layer.batch.num_sinks[i]) + first * step, tile_blocks(size)
    for kv_head in range(0, layer.shape.num_kv_heads, heads):
        blocks, at = (
            find_blocks(start, step, end - first, i, np.int64(kv_head), heads, layer),
            i * layer.shape.num_kv_heads + kv_head,
        )
        samples[at : at + heads, first * size : end * size] = -np.inf
        for r in range(runs.bounds.shape[1]):
            begin, last = blocks_of_run(r, i, kv_head, layer, runs, blocks)
            for low in range(begin // tile * tile, last, tile):
                _sample_tile(
                    max(low, begin), min(low + tile, last), first, r, i, np.int64(kv_head), layer, runs, blocks,
                    slices, samples,
                )  # fmt: skip


@njit(**SERIAL)
def _sample_tile(
    low: Any,
    high: Any,
    before: Any,
    r: Any,
    i: Any,
    kv_head: Any,
    layer: Any,
    runs: Any,
    blocks: Any,
    slices: Any,
    samples: Any,
) -> None:
    """`sample_piece` for blocks [low, high) of a tile; `before` blocks of the sample lie before the piece."""
    size, group, empty = np.int64(layer.shape.block_size), slices.less.shape[1], layer.empty
    head, tile = i * layer.shape.num_kv_heads + kv_head, tile_blocks(size)
    at = tiles_of(blocks, group, size)
    queries = queries_of(r, i, kv_head, runs, slices.less[head].ctypes.data, group)
    into, step = samples[head, (before + low) * size :].ctypes.data, 4 * samples.shape[1]
    for h in range(blocks.heads):
        start = low // tile * tile * (blocks.heads - 1) + h * tile + low
        estimate(
            empty, at.means, at.codes, start, start + high - low, at.last, size, of_head(queries, h), at.desk,
            into + h * step,
        )  # fmt: skip


@njit(**SERIAL)
def set_threshold(at: Any, layer: Any, slices: Any, samples: Any) -> None:
    """Sets the threshold of one session's head."""
    i = at // layer.shape.num_kv_heads
    slices.threshold[at] = -np.inf
    if needs_threshold(i, layer, slices):
        number, _, rank = sample_of(i, layer)
        slices.threshold[at] = about_reached(samples[at], number * layer.shape.block_size, rank)
