"""Scores blocks, pools the heads and takes the best, in one call that reads each anchor once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moorage.kernels.block_score.cpu import prefetch_distance, score_share
from moorage.kernels.block_score.packing import pack_sums
from moorage.kernels.checks import (
    FLOAT32,
    INT32,
    STORAGE,
    all_within,
    check_array,
    check_ids,
    check_multiple,
    is_typed,
)
from moorage.kernels.compiling import njit
from moorage.kernels.half import Storage
from moorage.kernels.numba_flags import SERIAL
from moorage.kernels.simd import LANES
from moorage.kernels.thread_team import UNITS_PER_THREAD, num_threads, run_units, team_for, unit_call
from moorage.kernels.top_blocks.cpu import top_row

Int32 = NDArray[np.int32]
Float32 = NDArray[np.float32]
Arrays = tuple[Any, ...]

PIECE = 128
"""Elements of a dot product between two lots of prefetching."""


def select_blocks(
    anchors_layer: Storage,
    pages: Int32,
    queries: Float32,
    limits: Int32,
    *,
    quest: bool,
    scale: float,
    ids: Int32,
    scores: Float32,
    scratch: Float32,
    first: int = 0,
) -> None:
    """Writes, for each of R queries, the k blocks of the largest mean of scale * logit over the heads of a selection.

    anchors_layer [P, Hkv, A, D] with a single sub-block, pages [n], queries [R, Hq, D]; row r selects among the
    first limits[r] pages. ids, scores [R, S, k] with S = 1 (all heads share a selection) or Hkv: places in `pages`
    plus `first`, ascending, padded with -1 and -inf. scratch [>= R * S * n] is overwritten.
    """
    out = ids, scores, scratch
    if not _fits(anchors_layer, pages, queries, limits, quest, out):
        raise _misfit(anchors_layer, pages, queries, limits, quest, out)
    num_pages, num_kv_heads, vectors, dim = anchors_layer.shape
    rows, count, selections, size = len(queries), len(pages), ids.shape[1], num_kv_heads * vectors * dim
    if not ids.size or not count:
        ids[:], scores[:] = -1, -np.inf
        return
    anchors, item = anchors_layer.reshape(num_pages, size), anchors_layer.itemsize
    factor = np.float32(scale * selections / queries.shape[1])
    problem = queries, quest, num_kv_heads, factor, limits, first, ids, scores
    team = team_for(count * size * item * rows)
    if not select_exactly(anchors, pages, problem, scratch, *prefetch_distance(item, size), team):
        raise _misfit(anchors_layer, pages, queries, limits, quest, out)


def _fits(
    anchors_layer: Storage, pages: Int32, queries: Float32, limits: Int32, quest: bool, out: Arrays
) -> bool:  # fmt: skip
    """Whether types and shapes are those that `select_blocks` describes."""
    ids, scores, scratch = out
    if not (
        is_typed(anchors_layer, STORAGE, 4) and is_typed(queries, FLOAT32, 3) and is_typed(ids, INT32, 3)
    ):
        return False
    _, num_kv_heads, vectors, dim = anchors_layer.shape
    if not (num_kv_heads and dim):
        return False
    rows, heads, selections = len(queries), queries.shape[1], ids.shape[1]
    return (
        vectors == (2 if quest else 1)
        and queries.shape[2] == dim
        and dim % LANES == 0
        and heads > 0
        and heads % num_kv_heads == 0
        and len(ids) == len(limits) == rows
        and selections in (1, num_kv_heads)
        and ids.shape == scores.shape
        and scratch.size >= rows * selections * len(pages)
        and is_typed(pages, INT32, 1)
        and is_typed(limits, INT32, 1)
        and is_typed(scores, FLOAT32, 3)
        and is_typed(scratch, FLOAT32, 1)
    )


def _misfit(
    anchors_layer: Storage, pages: Int32, queries: Float32, limits: Int32, quest: bool, out: Arrays
) -> ValueError:  # fmt: skip
    """Why nothing was selected."""
    ids, scores, scratch = out
    check_array("anchors_layer", anchors_layer, STORAGE, (None, None, 2 if quest else 1, None))
    num_pages, num_kv_heads, _, dim = anchors_layer.shape
    check_array("queries", queries, FLOAT32, (None, None, dim))
    rows, count = len(queries), len(pages)
    check_ids("pages", pages, num_pages)
    check_array("ids", ids, INT32, (rows, None, None))
    check_array("scores", scores, FLOAT32, ids.shape)
    check_array("limits", limits, INT32, (rows,))
    check_array("scratch", scratch, FLOAT32, (None,))
    check_multiple("head size", dim, LANES)
    check_multiple("query heads", queries.shape[1], num_kv_heads)
    if ids.shape[1] not in (1, num_kv_heads) or scratch.size < rows * ids.shape[1] * count:
        return ValueError(
            f"ids {ids.shape}, scratch {scratch.size}; expected 1 or {num_kv_heads} selections, room for each block"
        )
    return ValueError(f"limits: {limits.min()} to {limits.max()}; expected 0 to {count}")


@njit(**SERIAL)
def _packed(problem: Any, pages: Any, num_pages: Any) -> Any:
    """(whether limits and ids of pages fit, the queries' sums [S, R, V / S])."""
    queries, quest, num_kv_heads, factor, limits, _, ids, _ = problem
    rows, selections, _ = ids.shape
    fits = all_within(pages, num_pages)
    for limit in limits:
        fits = fits and 0 <= limit <= len(pages)
    sums = pack_sums(queries, num_kv_heads, quest, factor)
    packed = np.empty((selections, rows, sums.size // (rows * selections)), np.float32)
    # Element by element: the message of an assignment of slices that do not fit takes seconds to compile.
    for s in range(selections):
        for r in range(rows):
            source, into = sums[r].reshape(-1)[s * packed.shape[2] : (s + 1) * packed.shape[2]], packed[s, r]
            for v in range(len(into)):
                into[v] = source[v]
    return fits, packed


@njit(**SERIAL)
def _in_pieces(packed: Any) -> Any:
    """packed [S, R, V] as [S * V / PIECE, R, PIECE].

    Long dot products would ask for all that comes next at once, more than the memory takes orders for.
    """
    selections, rows, size = packed.shape
    piece = PIECE if size % PIECE == 0 else size
    cut = np.empty((selections * (size // piece), rows, piece), np.float32)
    for s in range(selections):
        for r in range(rows):
            for p in range(size // piece):
                into, source = cut[s * (size // piece) + p, r], packed[s, r, p * piece : (p + 1) * piece]
                for v in range(piece):
                    into[v] = source[v]
    return cut


@njit(**SERIAL)
def select_exactly(
    anchors: Any, pages: Any, problem: Any, pooled: Any, line: Any, ahead: Any, team: Any
) -> Any:
    """`select_blocks` by the anchors alone; False, without any selection, where limits or ids of pages do not fit."""
    _, _, _, _, limits, begin, ids, scores = problem
    fits, packed = _packed(problem, pages, len(anchors))
    if not fits:
        return False
    rows, selections, _ = ids.shape
    pooled = pooled[: rows * selections * len(pages)].reshape(rows, selections, len(pages))
    pieces = _in_pieces(packed)
    units = _num_units(team, len(pages))
    run_units(team, units, *unit_call(score_share, (units, anchors, pages, pieces, pooled, line, ahead)))
    for r in range(rows):
        for s in range(selections):
            top_row(pooled[r, s, : limits[r]], ids[r, s], scores[r, s])
            for i in range(ids.shape[2]):
                if ids[r, s, i] >= 0:
                    ids[r, s, i] += begin
    return True


@njit(**SERIAL)
def _num_units(team: Any, num_pages: Any) -> Any:
    threads = num_threads(team)
    return np.int64(1) if threads == 1 else min(num_pages, threads * UNITS_PER_THREAD)
