"""The norm from its definition, in fp64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


def rms_norm(x: Float64, weight: Float64, eps: float) -> Float64:
    """See the package, without its rounding."""
    out = np.empty_like(x)
    for row in np.ndindex(x.shape[:-1]):
        out[row] = weight * x[row] / np.sqrt((x[row] ** 2).sum() / x.shape[-1] + eps)
    return out


def norm_heads(heads: Float64, num_heads: int, q_weight: Float64, k_weight: Float64, eps: float) -> None:
    """See the package, without its rounding."""
    for head in range((num_heads + heads.shape[1]) // 2):
        heads[:, head] = rms_norm(heads[:, head], q_weight if head < num_heads else k_weight, eps)
