"""The k largest scores of each row without sorting the rest: by a heap, or for long rows by counts of bins."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moorage.kernels.checks import FLOAT32, INT32, check_array, is_typed
from moorage.kernels.compiling import njit
from moorage.kernels.numba_flags import SERIAL, num_workers
from moorage.kernels.thread_team import run_units, team_of, unit_call
from moorage.kernels.vector_math import extremes32

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]

CHUNK = 32
"""Scores that are compared with the worst kept one at a time, in vectors."""
BINS = 1024
"""Equal parts of a long row's range of scores."""


def top_blocks(
    scores: Float32,
    limits: Int32,
    k: int,
    ids: Int32,
    top: Float32,
) -> Int32:
    """Writes the k largest of scores[r, :limits[r]] and returns how many there are, int32 [R].

    scores [R, n]; ids, top [R, k]. Ids ascend; unused entries are -1 and -inf. Among equal scores the lower id
    wins; a NaN is never selected.
    """
    counts = np.zeros(len(scores), np.int32)
    known = is_typed(scores, FLOAT32, 2) and is_typed(limits, INT32, 1)
    if not (known and is_typed(ids, INT32, 2) and is_typed(top, FLOAT32, 2)) or ids.shape[1] != k:
        raise _misfit(scores, limits, k, ids, top)
    if not _top(team_of(num_workers(scores.nbytes)), scores, limits, ids, top, counts):
        raise _misfit(scores, limits, k, ids, top)
    return counts


def _misfit(scores: Float32, limits: Int32, k: int, ids: Int32, top: Float32) -> ValueError:
    """Why nothing was selected."""
    check_array("scores", scores, FLOAT32, (None, None))
    check_array("limits", limits, INT32, (len(scores),))
    check_array("ids", ids, INT32, (len(scores), k))
    check_array("top", top, FLOAT32, (len(scores), k))
    return ValueError(f"limits: {limits.min()} to {limits.max()}; expected 0 to {scores.shape[1]}")


@njit(**SERIAL)
def _sift_down(ids: Any, top: Any, place: Any, count: Any) -> None:
    """Restores the heap under `place`; its root is the worst kept entry: lowest score, then highest id."""
    score, block = top[place], ids[place]
    child = 2 * place + 1
    while child < count:
        other = child + 1
        if other < count and (
            top[other] < top[child] or (top[other] == top[child] and ids[other] > ids[child])
        ):
            child = other
        if top[child] > score or (top[child] == score and ids[child] < block):
            break
        top[place], ids[place] = top[child], ids[child]
        place, child = child, 2 * child + 1
    top[place], ids[place] = score, block


@njit(**SERIAL)
def _fill(row: Any, ids: Any, top: Any) -> Any:
    """Takes the first scores until the heap is full; returns (how many, the next place in the row)."""
    count, place = 0, 0
    while place < len(row) and count < len(ids):
        if not np.isnan(row[place]):
            ids[count], top[count] = place, row[place]
            count += 1
        place += 1
    for i in range(count // 2 - 1, -1, -1):
        _sift_down(ids, top, i, count)
    return count, place


@njit(**SERIAL)
def top_row(row: Any, ids: Any, top: Any) -> Any:
    """One row of `top_blocks`; returns how many were selected."""
    if len(row) >= BINS and 0 < len(ids) < len(row) and _by_bins(row, ids):
        count = len(ids)
    else:
        count = _by_heap(row, ids, top)
        ids[:count].sort()
    for i in range(count):
        top[i] = row[ids[i]]
    ids[count:], top[count:] = -1, -np.inf
    return count


@njit(**SERIAL)
def _by_heap(row: Any, ids: Any, top: Any) -> Any:
    """A bounded heap, entered only from chunks that hold a score above its worst; ids in no order."""
    count, place = _fill(row, ids, top)
    while place < len(row):
        chunk = row[place : place + CHUNK]
        worst, above = top[0], False
        for i in range(len(chunk)):
            above |= chunk[i] > worst
        if above:
            for i in range(len(chunk)):
                if chunk[i] > top[0]:
                    ids[0], top[0] = place + i, chunk[i]
                    _sift_down(ids, top, 0, count)
        place += CHUNK
    return count


@njit(**SERIAL)
def _by_bins(row: Any, ids: Any) -> Any:
    """Whole bins from the highest score down as far as they fit, and the best of the next one; ids ascend.

    Returns False, with nothing done, where a score has no bin: not finite, or all are equal.
    """
    flaw = np.float32(0)
    for i in range(len(row)):
        flaw += row[i] * np.float32(0)
    low, high = extremes32(row)
    span = high - low
    if flaw != 0 or not 0 < span < np.inf or not np.isfinite(BINS / span):
        return False
    factor, counts = np.float32(BINS / span), np.zeros(BINS + 1, np.int32)
    # Kept, since another loop's arithmetic might be ordered in another way.
    parts = np.empty(len(row), np.int16)
    for i in range(len(row)):
        part = np.int32((row[i] - low) * factor)
        parts[i] = max(0, part if part < BINS else BINS)
    for i in range(len(row)):
        counts[parts[i]] += 1
    edge, num_above = BINS, 0
    while num_above + counts[edge] <= len(ids):
        num_above += counts[edge]
        edge -= 1
    edge_ids, edge_scores = np.empty(counts[edge], np.int32), np.empty(counts[edge], np.float32)
    place = num_edge = 0
    for i in range(len(row)):
        if parts[i] > edge:
            ids[place] = i
            place += 1
        elif parts[i] == edge:
            edge_ids[num_edge], edge_scores[num_edge] = i, row[i]
            num_edge += 1
    _merge_edge(ids, num_above, edge_ids, edge_scores)
    return True


@njit(**SERIAL)
def _merge_edge(ids: Any, num_above: Any, edge_ids: Any, edge_scores: Any) -> None:
    """Fills `ids`, of which `num_above` are there, with the best of the edge bin; both ascend."""
    wanted = len(ids) - num_above
    if not wanted:
        return
    best, scores = np.empty(wanted, np.int32), np.empty(wanted, np.float32)
    _by_heap(edge_scores, best, scores)
    best.sort()
    above, place = num_above - 1, wanted - 1
    for into in range(len(ids) - 1, -1, -1):
        if place < 0:
            break
        if above >= 0 and ids[above] > edge_ids[best[place]]:
            ids[into] = ids[above]
            above -= 1
        else:
            ids[into] = edge_ids[best[place]]
            place -= 1


@njit(**SERIAL)
def _fits(scores: Any, limits: Any, ids: Any, top: Any) -> Any:
    fits = len(limits) == len(ids) == len(scores) and ids.shape == top.shape
    for limit in limits:
        fits = fits and 0 <= limit <= scores.shape[1]
    return fits


@njit(**SERIAL)
def _top(team: Any, scores: Any, limits: Any, ids: Any, top: Any, counts: Any) -> Any:
    """False, and nothing is selected, where shapes or limits do not fit."""
    if not _fits(scores, limits, ids, top):
        return False
    run_units(team, len(scores) if ids.size else 0, *unit_call(_top_item, (scores, limits, ids, top, counts)))
    return True


@njit(**SERIAL)
def _top_item(r: Any, scores: Any, limits: Any, ids: Any, top: Any, counts: Any) -> None:
    counts[r] = top_row(scores[r, : limits[r]], ids[r], top[r])
