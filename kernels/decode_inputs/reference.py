"""Rotated queries and stored rows from the definition, in fp64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


def decode_inputs(
    query: Float64,
    key: Float64,
    value: Float64,
    cos: Float64,
    sin: Float64,
    slots: Float64,
    slot: int,
    row: int,
) -> tuple[Float64, Float64, Float64]:
    """See triton.py; `slots` are not rounded to."""
    if slot >= 0:
        slots[slot, 0, :, row], slots[slot, 1, :, row] = key, value
    return query, turn_query(query, cos, sin), np.stack((key, value))


def turn_query(query: Float64, cos: Float64, sin: Float64) -> Float64:
    """See triton.py."""
    half = cos.shape[1]
    low, high, rest = np.split(query, [half, 2 * half], axis=1)
    turned = [
        np.concatenate((low * c - high * s, high * c + low * s, rest), axis=1)
        for c, s in zip(cos, sin, strict=True)
    ]
    return np.stack(turned)
