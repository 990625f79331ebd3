"""Turns the logits of many query heads into one score per block and selection."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moorage.kernels.checks import FLOAT32, INT32, check_array, check_multiple
from moorage.kernels.compiling import njit
from moorage.kernels.numba_flags import SERIAL, num_workers
from moorage.kernels.thread_team import run_units, team_of, unit_call
from moorage.kernels.vector_math import exp32, max32

POOLINGS = {"softmax": 0, "sum": 1, "max": 2}
_SOFTMAX, _SUM = POOLINGS["softmax"], POOLINGS["sum"]
CHUNK = 512
"""Blocks pooled by one thread at a time."""


def pool_scores(
    scores: NDArray[np.float32],
    num_kv_heads: int,
    shared: bool,
    scale: float,
    limits: NDArray[np.int32],
    out: NDArray[np.float32],
    pooling: str = "softmax",
    lse: NDArray[np.float32] | None = None,
) -> None:
    """Pools scores [R, Hq, n] over all heads (`shared`) or the heads of each KV head into out [R, S, n].

    "softmax": mean over heads of exp(scale * score - lse), with lse [R, Hq] taken over the row's own blocks unless
    it is given; "sum": mean of scale * score; "max": its maximum. Blocks from limits[r] on get -inf.
    """
    check_array("scores", scores, FLOAT32, (None, None, None))
    rows, heads, count = scores.shape
    check_multiple("query heads", heads, num_kv_heads)
    check_array("out", out, FLOAT32, (rows, 1 if shared else num_kv_heads, count))
    _check_limits(limits, rows, count)
    if pooling not in POOLINGS:
        raise ValueError(f"pooling: {pooling!r}; expected one of {', '.join(POOLINGS)}")
    if not scores.size:
        return
    if lse is None:
        lse = np.zeros((rows, heads), np.float32)
        if pooling == "softmax":
            score_lse(scores, scale, limits, lse)
    check_array("lse", lse, FLOAT32, (rows, heads))
    _pool(team_of(num_workers(scores.nbytes)), scores, np.float32(scale), limits, lse, POOLINGS[pooling], out)


def score_lse(
    scores: NDArray[np.float32], scale: float, limits: NDArray[np.int32], out: NDArray[np.float32]
) -> None:
    """Writes log(sum(exp(scale * scores[r, h, :limits[r]]))) into out [R, Hq]; -inf where the limit is 0."""
    check_array("scores", scores, FLOAT32, (None, None, None))
    check_array("out", out, FLOAT32, scores.shape[:2])
    _check_limits(limits, len(scores), scores.shape[2])
    _lse(team_of(num_workers(scores.nbytes)), scores, np.float32(scale), limits, out)


def _check_limits(limits: NDArray[np.int32], rows: int, count: int) -> None:
    check_array("limits", limits, INT32, (rows,))
    if rows and not 0 <= limits.min() <= limits.max() <= count:
        raise ValueError(f"limits: {limits.min()} to {limits.max()}; expected 0 to {count}")


@njit(**SERIAL)
def _add_head(logits: Any, scale: Any, lse: Any, share: Any, pooling: Any, into: Any) -> None:
    """Pools the logits [c] of one head into `into` [c]."""
    if pooling == _SOFTMAX:
        for i in range(len(into)):
            into[i] += share * exp32(scale * logits[i] - lse)
    elif pooling == _SUM:
        for i in range(len(into)):
            into[i] += share * (scale * logits[i])
    else:
        for i in range(len(into)):
            logit = scale * logits[i]
            into[i] = logit if logit > into[i] else into[i]


@njit(**SERIAL)
def _pool_item(item: Any, scores: Any, scale: Any, limits: Any, lse: Any, pooling: Any, out: Any) -> None:
    """One piece of CHUNK blocks of one output row."""
    selections = out.shape[1]
    group = scores.shape[1] // selections
    row, begin = item % (len(out) * selections), item // (len(out) * selections) * CHUNK
    r, selection = row // selections, row % selections
    end = min(begin + CHUNK, out.shape[2])
    seen = max(begin, min(end, limits[r]))
    target = out[r, selection]
    target[begin:seen] = 0 if pooling <= _SUM else -np.inf
    target[seen:end] = -np.inf
    for head in range(selection * group, (selection + 1) * group):
        logits = scores[r, head]
        _add_head(logits[begin:seen], scale, lse[r, head], np.float32(1 / group), pooling, target[begin:seen])


@njit(**SERIAL)
def _pool(team: Any, scores: Any, scale: Any, limits: Any, lse: Any, pooling: Any, out: Any) -> None:
    count = out.shape[0] * out.shape[1] * ((out.shape[2] + CHUNK - 1) // CHUNK)
    run_units(team, count, *unit_call(_pool_item, (scores, scale, limits, lse, pooling, out)))


@njit(**SERIAL)
def _row_lse(row: Any, scale: Any) -> Any:
    if len(row) == 0:
        return np.float32(-np.inf)
    peak = scale * max32(row)
    if peak == -np.inf:
        return np.float32(peak)
    total = np.float32(0)
    for i in range(len(row)):
        total += exp32(scale * row[i] - peak)
    return np.float32(peak + np.log(total))


@njit(**SERIAL)
def _lse(team: Any, scores: Any, scale: Any, limits: Any, out: Any) -> None:
    run_units(team, out.size, *unit_call(_lse_item, (scores, scale, limits, out)))


@njit(**SERIAL)
def _lse_item(item: Any, scores: Any, scale: Any, limits: Any, out: Any) -> None:
    r, head = divmod(item, scores.shape[1])
    out[r, head] = _row_lse(scores[r, head, : limits[r]], scale)
