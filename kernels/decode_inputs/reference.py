"""Rotated queries and stored rows from the definition, in fp64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


def turn_queries(queries: Float64, cos: Float64, sin: Float64) -> Float64:
    """See triton.py."""
    half = cos.shape[2]
    turned = np.empty((len(queries), cos.shape[1], *queries.shape[1:]))
    for r, v in np.ndindex(cos.shape[:2]):
        low, high, rest = np.split(queries[r], [half, 2 * half], axis=1)
        turned[r, v] = np.concatenate(
            (low * cos[r, v] - high * sin[r, v], high * cos[r, v] + low * sin[r, v], rest), axis=1
        )
    return turned


def store_row(key: Float64, value: Float64, slots: Float64, slot: int, row: int) -> None:
    """See triton.py."""
    slots[slot, 0, :, row], slots[slot, 1, :, row] = key, value
