"""Partial results joined from the definition, in fp64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


def merge_lse(outs: Float64, lses: Float64) -> tuple[Float64, Float64]:
    """See the package."""
    out, lse = np.zeros(outs.shape[1:]), np.full(lses.shape[1:], -np.inf)
    for place in np.ndindex(lse.shape):
        parts = [i for i in range(len(lses)) if lses[(i, *place)] > -np.inf]
        if parts:
            peak = max(lses[(i, *place)] for i in parts)
            weights = [np.exp(lses[(i, *place)] - peak) for i in parts]
            joined = sum(weight * outs[(i, *place)] for i, weight in zip(parts, weights, strict=True))
            out[place] = joined / sum(weights)
            lse[place] = peak + np.log(sum(weights))
    return out, lse
