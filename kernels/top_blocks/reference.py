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
    """By a full stable sort of each row."""
    ids[:], top[:] = -1, -np.inf
    counts = np.minimum(limits, k).astype(np.int32)
    for row, count in enumerate(counts):
        best = np.argsort(-scores[row, : limits[row]], kind="stable")[:count]
        ids[row, :count] = np.sort(best)
        top[row, :count] = scores[row, np.sort(best)]
    return counts
