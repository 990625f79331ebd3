"""Scores blocks, pools the heads and takes the best, in one call that reads each anchor once."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from moorage.kernels.block_score.codes import code_weights, score_codes
from moorage.kernels.block_score.cpu import prefetch_distance, score_range
from moorage.kernels.block_score.packing import pack_sums
from moorage.kernels.checks import (
    FLOAT32,
    INT32,
    STORAGE,
    UINT8,
    all_within,
    check_array,
    check_ids,
    check_multiple,
    is_typed,
)
from moorage.kernels.half import Storage
from moorage.kernels.numba_flags import SERIAL
from moorage.kernels.simd import LANES, LINE_BYTES, TILE, dots_1, prefetch
from moorage.kernels.thread_team import UNITS_PER_THREAD, num_threads, run_units, team_for, unit_call
from moorage.kernels.top_blocks.cpu import top_row

Int32 = NDArray[np.int32]
Float32 = NDArray[np.float32]
Arrays = tuple[Any, ...]

PIECE = 128
"""Elements of a dot product between two lots of prefetching."""


class Coded(NamedTuple):
    """Four-bit codes of the anchors, and how many blocks they may leave for the exact scores to decide between."""

    codes_layer: NDArray[np.uint8]
    """[P, Hkv * A * D / 2]"""
    step: Float32
    """[Hkv * A * D]"""
    num_kept: int


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
    coded: Coded | None = None,
    first: int = 0,
) -> None:
    """Writes, for each of R queries, the k blocks of the largest mean of scale * logit over the heads of a selection.

    anchors_layer [P, Hkv, A, D] with a single sub-block, pages [n], queries [R, Hq, D]; row r selects among the
    first limits[r] pages. ids, scores [R, S, k] with S = 1 (all heads share a selection) or Hkv: places in `pages`
    plus `first`, ascending, padded with -1 and -inf. scratch [>= R * S * n] is overwritten. With `coded`, every block
    gets a coarse score first, and the `num_kept` best of them an exact one.
    """
    out = ids, scores, scratch
    if not _fits(anchors_layer, pages, queries, limits, quest, out, coded):
        raise _misfit(anchors_layer, pages, queries, limits, quest, out, coded)
    num_pages, num_kv_heads, vectors, dim = anchors_layer.shape
    rows, count, selections, size = len(queries), len(pages), ids.shape[1], num_kv_heads * vectors * dim
    if not ids.size or not count:
        ids[:], scores[:] = -1, -np.inf
        return
    anchors, item = anchors_layer.reshape(num_pages, size), anchors_layer.itemsize
    factor = np.float32(scale * selections / queries.shape[1])
    problem = queries, quest, num_kv_heads, factor, limits, first, ids, scores
    if coded is None:
        line, ahead = prefetch_distance(item, size)
        team = team_for(count * size * item * rows)
        done = select_exactly(anchors, pages, problem, scratch, line, ahead, team)
    else:
        team = team_for(count * size // 2 * rows)
        done = select_by_codes(anchors, pages, problem, scratch, *coded, team)
    if not done:
        raise _misfit(anchors_layer, pages, queries, limits, quest, out, coded)


def _fits(
    anchors_layer: Storage, pages: Int32, queries: Float32, limits: Int32, quest: bool, out: Arrays,
    coded: Coded | None,
) -> bool:  # fmt: skip
    """Whether types and shapes are those that `select_blocks` describes."""
    ids, scores, scratch = out
    if not (
        is_typed(anchors_layer, STORAGE, 4) and is_typed(queries, FLOAT32, 3) and is_typed(ids, INT32, 3)
    ):
        return False
    num_pages, num_kv_heads, vectors, dim = anchors_layer.shape
    if not (num_kv_heads and dim):
        return False
    rows, heads, selections = len(queries), queries.shape[1], ids.shape[1]
    if coded is not None and not (
        is_typed(coded.codes_layer, UINT8, 2)
        and coded.codes_layer.shape == (num_pages, num_kv_heads * vectors * dim // 2)
        and is_typed(coded.step, FLOAT32, 1)
        and len(coded.step) == num_kv_heads * vectors * dim
    ):
        return False
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
    anchors_layer: Storage, pages: Int32, queries: Float32, limits: Int32, quest: bool, out: Arrays,
    coded: Coded | None,
) -> ValueError:  # fmt: skip
    """Why nothing was selected."""
    ids, scores, scratch = out
    check_array("anchors_layer", anchors_layer, STORAGE, (None, None, 2 if quest else 1, None))
    num_pages, num_kv_heads, vectors, dim = anchors_layer.shape
    check_array("queries", queries, FLOAT32, (None, None, dim))
    rows, count, size = len(queries), len(pages), num_kv_heads * vectors * dim
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
    if coded is not None:
        check_array("codes_layer", coded.codes_layer, UINT8, (num_pages, size // 2))
        check_array("step", coded.step, FLOAT32, (size,))
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
    run_units(team, units, *unit_call(_score_unit, (units, anchors, pages, pieces, pooled, line, ahead)))
    for r in range(rows):
        for s in range(selections):
            top_row(pooled[r, s, : limits[r]], ids[r, s], scores[r, s])
            for i in range(ids.shape[2]):
                if ids[r, s, i] >= 0:
                    ids[r, s, i] += begin
    return True


@njit(**SERIAL)
def select_by_codes(
    anchors: Any, pages: Any, problem: Any, coarse: Any, codes: Any, step: Any, num_kept: Any, team: Any
) -> Any:
    """`select_blocks` by codes, then by the anchors of the `num_kept` best."""
    _, _, _, _, limits, begin, ids, scores = problem
    fits, packed = _packed(problem, pages, len(anchors))
    if not fits:
        return False
    rows, selections, _ = ids.shape
    coarse = coarse[: rows * selections * len(pages)].reshape(rows, selections, len(pages))
    even, odd = code_weights(packed, step)
    units = _num_units(team, len(pages))
    run_units(team, units, *unit_call(_score_codes_unit, (units, codes, pages, even, odd, coarse)))
    kept, exact = np.empty(num_kept, np.int32), np.empty(num_kept, np.float32)
    for r in range(rows):
        for s in range(selections):
            count = top_row(coarse[r, s, : limits[r]], kept, exact)
            _score_kept(anchors, pages, kept[:count], packed[s, r], s, exact)
            top_row(exact[:count], ids[r, s], scores[r, s])
            for i in range(ids.shape[2]):
                if ids[r, s, i] >= 0:
                    ids[r, s, i] = kept[ids[r, s, i]] + begin
    return True


@njit(**SERIAL)
def _score_kept(anchors: Any, pages: Any, kept: Any, query: Any, part: Any, out: Any) -> None:
    """Exact scores of the blocks `kept` by their `part` of the anchors."""
    stored, page_size, size, last = anchors.reshape(-1), anchors.shape[1], len(query), len(kept) - 1
    tile, line = np.empty(TILE, np.float32), LINE_BYTES // stored.itemsize
    for i in kept:
        for d in range(0, size, line):
            prefetch(stored, pages[i] * page_size + part * size + d)
    for first in range(0, len(kept), TILE):
        a = pages[kept[first]] * page_size + part * size
        b = pages[kept[min(first + 1, last)]] * page_size + part * size
        c = pages[kept[min(first + 2, last)]] * page_size + part * size
        d = pages[kept[min(first + 3, last)]] * page_size + part * size
        dots_1(stored, a, b, c, d, query, 0, size, tile, 0, TILE, True)
        for i in range(first, min(first + TILE, len(kept))):
            out[i] = tile[i - first]


@njit(**SERIAL)
def _num_units(team: Any, num_pages: Any) -> Any:
    threads = num_threads(team)
    return np.int64(1) if threads == 1 else min(num_pages, threads * UNITS_PER_THREAD)


@njit(**SERIAL)
def _score_unit(
    unit: Any, units: Any, anchors: Any, pages: Any, pieces: Any, out: Any, line: Any, ahead: Any
) -> None:  # fmt: skip
    begin, end = len(pages) * unit // units, len(pages) * (unit + 1) // units
    score_range(anchors, anchors.shape[1], pages, pieces, out, line, ahead, begin, end)


@njit(**SERIAL)
def _score_codes_unit(unit: Any, units: Any, codes: Any, pages: Any, even: Any, odd: Any, out: Any) -> None:
    score_codes(codes, pages, even, odd, out, len(pages) * unit // units, len(pages) * (unit + 1) // units)
