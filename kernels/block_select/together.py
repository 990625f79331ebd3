"""Selections of several sessions in one call, each among its own blocks, dealt to the threads."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moorage.kernels.block_score.cpu import prefetch_distance
from moorage.kernels.block_select.cpu import select_exactly
from moorage.kernels.checks import FLOAT32, INT32, STORAGE, check_array, check_ids, check_multiple
from moorage.kernels.half import Storage
from moorage.kernels.numba_flags import num_workers
from moorage.kernels.simd import LANES
from moorage.kernels.thread_team import ALONE
from moorage.kernels.threads import run_each

Int32 = NDArray[np.int32]
Float32 = NDArray[np.float32]
Arrays = tuple[Any, ...]


def select_blocks_together(
    anchors_layer: Storage,
    pages: Int32,
    bounds: Int32,
    queries: Float32,
    limits: Int32,
    *,
    quest: bool,
    scales: Float32,
    firsts: Int32,
    ids: Int32,
    scores: Float32,
    scratch: Float32,
) -> None:
    """`select_blocks` for N sessions with a query each.

    Session i selects by queries[i] of [N, Hq, D] among the first limits[i] of pages[bounds[i] : bounds[i + 1]], and
    firsts[i] is added to its ids. bounds [N + 1] ascend from 0 to len(pages); limits, scales, firsts [N]; ids, scores
    [N, S, k] as in `select_blocks`. scratch [>= S * len(pages)] is overwritten.
    """
    check_array("anchors_layer", anchors_layer, STORAGE, (None, None, 2 if quest else 1, None))
    num_pages, num_kv_heads, vectors, dim = anchors_layer.shape
    check_array("queries", queries, FLOAT32, (None, None, dim))
    count, size = len(queries), num_kv_heads * vectors * dim
    check_ids("pages", pages, num_pages)
    check_array("ids", ids, INT32, (count, None, None))
    check_array("scores", scores, FLOAT32, ids.shape)
    for name, array in (("limits", limits), ("firsts", firsts)):
        check_array(name, array, INT32, (count,))
    check_array("scales", scales, FLOAT32, (count,))
    check_array("bounds", bounds, INT32, (count + 1,))
    check_multiple("head size", dim, LANES)
    check_multiple("query heads", queries.shape[1], num_kv_heads)
    selections, lengths = ids.shape[1], np.diff(bounds)
    if selections not in (1, num_kv_heads) or scratch.size < selections * len(pages):
        raise ValueError(
            f"ids {ids.shape}, scratch {scratch.size}; expected 1 or {num_kv_heads} selections, room for each block"
        )
    in_order = bounds[0] == 0 and bounds[-1] == len(pages) and not (lengths < 0).any()
    if not in_order or (limits < 0).any() or (limits > lengths).any():
        raise ValueError(f"limits {limits} of sessions whose blocks begin at {bounds} of {len(pages)}")
    if not ids.size:
        return
    factors = (scales * np.float32(selections / queries.shape[1])).astype(np.float32)
    item = anchors_layer.itemsize
    hints = prefetch_distance(item, size)
    sessions = pages, bounds, queries, limits, firsts, factors
    anchors = anchors_layer.reshape(num_pages, size)
    workers = min(num_workers(len(pages) * size * item), count)

    def select(i: int) -> None:
        _one(i, anchors, sessions, num_kv_heads, quest, ids, scores, scratch, hints)

    run_each(select, count, workers)


def _one(
    i: int, anchors: Storage, sessions: Arrays, num_kv_heads: int, quest: bool, ids: Int32, scores: Float32,
    scratch: Float32, hints: tuple[int, int],
) -> None:  # fmt: skip
    """The selection of session i."""
    pages, bounds, queries, limits, firsts, factors = sessions
    begin, end, one = bounds[i], bounds[i + 1], slice(i, i + 1)
    if begin == end:
        ids[i], scores[i] = -1, -np.inf
        return
    # In the types that one session's selection has, so that nothing is compiled twice.
    first = int(firsts[i])
    problem = queries[one], quest, num_kv_heads, factors[i], limits[one], first, ids[one], scores[one]
    room = scratch[ids.shape[1] * begin : ids.shape[1] * end]
    select_exactly(anchors, pages[begin:end], problem, room, hints[0], hints[1], ALONE)
