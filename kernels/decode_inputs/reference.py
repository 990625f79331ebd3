"""Rotated queries and stored rows from the definition, in fp64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


def turn_and_store(
    heads: Float64,
    num_kv_heads: int,
    cos: Float64,
    sin: Float64,
    slots: Float64,
    slot: NDArray[np.int32],
    row: NDArray[np.int32],
) -> Float64:
    """See triton.py; writes into `slots`, returns the queries [R, V, Hq, D]."""
    num_rows, num_heads, dim = heads.shape[0], heads.shape[1] - 2 * num_kv_heads, heads.shape[2]
    half = cos.shape[2]
    queries = np.empty((num_rows, cos.shape[1], num_heads, dim))
    for r in range(num_rows):
        query, keys, values = np.split(heads[r], [num_heads, num_heads + num_kv_heads])
        for variant in range(cos.shape[1]):
            low, high, rest = query[:, :half], query[:, half : 2 * half], query[:, 2 * half :]
            c, s = cos[r, variant], sin[r, variant]
            queries[r, variant] = np.concatenate((low * c - high * s, high * c + low * s, rest), axis=1)
        if slot[r] >= 0:
            slots[slot[r], 0, :, row[r]], slots[slot[r], 1, :, row[r]] = keys, values
    return queries
