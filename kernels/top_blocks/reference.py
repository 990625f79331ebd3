"""Slow form of `top_blocks`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def top_blocks(
    scores: NDArray[np.float32],
    limits: NDArray[np.int32],
    k: int,
    ids: NDArray[np.int32],
    top: NDArray[np.float32],
) -> NDArray[np.int32]:
    """The best of each row by a full stable sort, in which NaN comes last."""
    ids[:], top[:] = -1, -np.inf
    counts = np.zeros(len(scores), np.int32)
    for row, limit in enumerate(limits):
        real = limit - np.count_nonzero(np.isnan(scores[row, :limit]))
        best = np.sort(np.argsort(-scores[row, :limit], kind="stable")[: min(real, k)])
        counts[row] = len(best)
        ids[row, : len(best)], top[row, : len(best)] = best, scores[row, best]
    return counts
