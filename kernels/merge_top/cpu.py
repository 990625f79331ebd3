"""Joins selections of shards, each ascending, and takes the best of them, without sorting anything."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moorage.kernels.checks import FLOAT32, INT32, check_array
from moorage.kernels.compiling import njit
from moorage.kernels.numba_flags import SERIAL
from moorage.kernels.top_blocks.cpu import top_row

Int32 = NDArray[np.int32]
Float32 = NDArray[np.float32]

_NOWHERE = np.iinfo(np.int64).max


def merge_top(ids: Int32, scores: Float32, length: int, k: int) -> tuple[Int32, Float32]:
    """(ids [N, k], scores [N, k]): the k largest scores of each row over all shards, padded with -1 and -inf.

    ids, scores [M, N, n]: what shard m selected, ids ascending and padded at the end with -1. The shards hold
    stripes of `length` blocks in turn; ids of the result are those of the whole and ascend. Among equal scores the
    lower id wins; a NaN is never selected.
    """
    check_array("ids", ids, INT32, (None, None, None))
    check_array("scores", scores, FLOAT32, ids.shape)
    best, top = np.empty((ids.shape[1], k), np.int32), np.empty((ids.shape[1], k), np.float32)
    if k:
        merge_into(ids, scores, length, best, top)
    return best, top


@njit(**SERIAL)
def merge_into(ids: Any, scores: Any, length: Any, best: Any, top: Any) -> None:
    """`merge_top` into `best` and `top`, for use in kernels."""
    num_shards, num_rows, count = ids.shape
    joined, values = np.empty(num_shards * count, np.int32), np.empty(num_shards * count, np.float32)
    heads = np.empty(num_shards, np.int64)
    for row in range(num_rows):
        heads[:], size = 0, 0
        while True:
            shard, lowest = -1, _NOWHERE
            for m in range(num_shards):
                if heads[m] < count and ids[m, row, heads[m]] >= 0:
                    turn, within = divmod(np.int64(ids[m, row, heads[m]]), length)
                    whole = (turn * num_shards + m) * length + within
                    if whole < lowest:
                        shard, lowest = m, whole
            if shard < 0:
                break
            joined[size], values[size] = lowest, scores[shard, row, heads[shard]]
            heads[shard] += 1
            size += 1
        selected = top_row(values[:size], best[row], top[row])
        for i in range(selected):
            best[row, i] = joined[best[row, i]]
