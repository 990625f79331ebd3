"""`merge_top` by sorting, block by block."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def merge_top(
    ids: NDArray[np.int32], scores: NDArray[np.float32], length: int, k: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """See the package."""
    num_shards, num_rows, _ = ids.shape
    best = np.full((num_rows, k), -1, np.int32)
    top = np.full((num_rows, k), -np.inf, np.float32)
    for row in range(num_rows):
        found = []
        for shard in range(num_shards):
            for block, score in zip(ids[shard, row], scores[shard, row], strict=True):
                if block >= 0 and not np.isnan(score):
                    stripe = block // length * num_shards + shard
                    found.append((-score, stripe * length + block % length))
        selected = sorted((whole, -negative) for negative, whole in sorted(found)[:k])
        for i, (whole, score) in enumerate(selected):
            best[row, i], top[row, i] = whole, score
    return best, top
