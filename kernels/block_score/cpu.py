"""Scores blocks by their anchors at the speed of memory: each anchor is read once for all queries of its KV head."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moorage.kernels.block_score.packing import pack
from moorage.kernels.checks import FLOAT32, STORAGE, check_array, check_ids, check_multiple
from moorage.kernels.compiling import njit
from moorage.kernels.half import Storage
from moorage.kernels.numba_flags import INLINE, SERIAL, num_workers
from moorage.kernels.simd import LANES, LINE_BYTES, TILE, dots_1, dots_2, dots_4, prefetch
from moorage.kernels.thread_team import run_units, team_of, unit_call, units_for

CHUNK = 32
"""Blocks scored before their scores are written out row by row; writing each at once would thrash the L1 cache."""
PREFETCH_BYTES = 32 * 1024
"""How far ahead anchors are asked for: memory latency times the bandwidth of one core, and some more."""


def score_blocks(
    anchors_layer: Storage,
    pages: NDArray[np.int32],
    queries: NDArray[np.float32],
    quest: bool,
    out: NDArray[np.float32],
    *,
    add: bool = False,
) -> None:
    """Writes raw logits of R queries against n pages: the largest over a block's sub-blocks, or with `add` their sum.

    anchors_layer [P, Hkv, A, D]; pages [n]; queries [R, Hq, D]; out [R, Hq, n]; D a multiple of 8. The logit is
    query . mean, or if `quest` the bound sum_d max(q_d * max_d, q_d * min_d) (Quest, ICML 2024).
    """
    check_array("anchors_layer", anchors_layer, STORAGE, (None, None, None, None))
    num_pages, num_kv_heads, vectors, dim = anchors_layer.shape
    check_array("queries", queries, FLOAT32, (None, None, dim))
    check_ids("pages", pages, num_pages)
    check_array("out", out, FLOAT32, (*queries.shape[:2], len(pages)))
    check_multiple("head size", dim, LANES)
    check_multiple("query heads", queries.shape[1], num_kv_heads)
    check_multiple("anchor vectors", vectors, 2 if quest else 1)
    if not out.size:
        return
    packed = pack(queries, num_kv_heads, quest)
    if add:
        # A sum of dot products is one dot product of all vectors with as many copies of the query.
        packed = np.tile(packed, vectors // (2 if quest else 1))
    _score(anchors_layer.reshape(num_pages, -1), pages, packed, out)


def prefetch_distance(itemsize: int, page_size: int) -> tuple[int, int]:
    """(elements of a cache line, pages by which prefetching goes ahead), for `page_size` elements of a page."""
    return LINE_BYTES // itemsize, TILE * max(1, PREFETCH_BYTES // (TILE * max(1, page_size) * itemsize))


def _score(
    anchors: Storage, pages: NDArray[np.int32], packed: NDArray[np.float32], out: NDArray[np.float32]
) -> None:
    """Logits of packed queries [heads, rows, V] into out, whose rows are dealt to the heads in turn.

    Of each page of `anchors` [P, V'] an equal part is scored by each head.
    """
    line, ahead = prefetch_distance(anchors.itemsize, anchors.shape[1])
    team = team_of(num_workers(len(pages) * anchors.shape[1] * anchors.itemsize * packed.shape[1]))
    score(team, units_for(team, len(pages)), anchors, pages, packed, out, line, ahead)


@njit(**INLINE)
def _score_tile(
    stored: Any, a: Any, b: Any, c: Any, d: Any, queries: Any, at: Any, count: Any, size: Any, out: Any, out_at: Any,
    fresh: Any,
) -> None:  # fmt: skip
    """Logits of `count` queries against the vectors at a, b, c, d, into out[out_at + m * CHUNK + 0..3]."""
    m = 0
    while m + 4 <= count:
        dots_4(stored, a, b, c, d, queries, at + m * size, size, out, out_at + m * CHUNK, CHUNK, fresh)
        m += 4
    if m + 2 <= count:
        dots_2(stored, a, b, c, d, queries, at + m * size, size, out, out_at + m * CHUNK, CHUNK, fresh)
        m += 2
    if m < count:
        dots_1(stored, a, b, c, d, queries, at + m * size, size, out, out_at + m * CHUNK, CHUNK, fresh)


@njit(**SERIAL)
def score_range(
    anchors: Any,
    pages: Any,
    queries: Any,
    out: Any,
    line: Any,
    ahead: Any,
    begin: Any,
    end: Any,
) -> None:
    """Scores pages [begin, end) with packed queries [parts, rows, V].

    `out` has a row for each query of each part; or fewer rows than there are parts, which then hold the sums over
    neighbouring parts, in whose order memory is read.
    """
    num_kv_heads, count, size = queries.shape
    page_size = anchors.shape[1]
    head_size = page_size // num_kv_heads
    stored, flat_queries = anchors.reshape(-1), queries.reshape(-1)
    best = np.empty(num_kv_heads * count * CHUNK, np.float32)
    at, coming = np.empty(TILE, np.int64), np.empty(TILE, np.int64)
    for first in range(begin, end, CHUNK):
        last = min(first + CHUNK, end)
        for tile in range(first, last, TILE):
            for i in range(TILE):
                at[i] = pages[min(tile + i, end - 1)] * page_size
                coming[i] = pages[min(tile + ahead + i, end - 1)] * page_size
            ahead_tile, ahead_at = 0, 0
            for head in range(num_kv_heads):
                # In the order of memory, which keeps the hardware's prefetcher engaged as well.
                for _ in range(TILE):
                    for d in range(0, head_size, line):
                        prefetch(stored, coming[ahead_tile] + ahead_at + d)
                    ahead_at += head_size
                    if ahead_at == page_size:
                        ahead_tile, ahead_at = ahead_tile + 1, 0
                query_at, into = head * count * size, head * count * CHUNK + tile - first
                for sub in range(head * head_size, (head + 1) * head_size, size):
                    a, b, c, d = at[0] + sub, at[1] + sub, at[2] + sub, at[3] + sub
                    fresh = sub == head * head_size
                    _score_tile(stored, a, b, c, d, flat_queries, query_at, count, size, best, into, fresh)
        if out.shape[1] < num_kv_heads:
            _write_sums(best, num_kv_heads, count, out, first, last)
        else:
            _write_out(best, num_kv_heads, count, out, first, last)


@njit(**SERIAL)
def _write_out(best: Any, num_kv_heads: Any, count: Any, out: Any, first: Any, last: Any) -> None:
    group = out.shape[1] // num_kv_heads
    for row in range(num_kv_heads * count):
        head, m = row // count, row % count
        into, source = (
            out[m // group, head * group + m % group, first:last],
            best[row * CHUNK : (row + 1) * CHUNK],
        )
        for i in range(len(into)):
            into[i] = source[i]


@njit(**SERIAL)
def _write_sums(best: Any, num_parts: Any, count: Any, out: Any, first: Any, last: Any) -> None:
    pieces = num_parts // out.shape[1]
    for m in range(count):
        for selection in range(out.shape[1]):
            into = out[m, selection, first:last]
            into[:] = 0
            for part in range(selection * pieces, (selection + 1) * pieces):
                source = best[(part * count + m) * CHUNK : (part * count + m + 1) * CHUNK]
                for i in range(len(into)):
                    into[i] += source[i]


@njit(**SERIAL)
def score(
    team: Any, units: Any, anchors: Any, pages: Any, queries: Any, out: Any, line: Any, ahead: Any
) -> None:  # fmt: skip
    run_units(team, units, *unit_call(score_share, (units, anchors, pages, queries, out, line, ahead)))


@njit(**SERIAL)
def score_share(
    unit: Any, units: Any, anchors: Any, pages: Any, queries: Any, out: Any, line: Any, ahead: Any
) -> None:  # fmt: skip
    begin, end = len(pages) * unit // units, len(pages) * (unit + 1) // units
    score_range(anchors, pages, queries, out, line, ahead, begin, end)
