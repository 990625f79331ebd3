"""Rotation of vectors of heads on the host."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from moorage.kernels.numba_flags import SERIAL

Float32 = NDArray[np.float32]


def rotate_heads(heads: Float32, cos: Float32, sin: Float32) -> Float32:
    """heads [n, D] with channels (i, i + rd / 2) turned by cos, sin [rd / 2]; the channels from rd on as they are."""
    if 2 * len(cos) > heads.shape[1] or cos.shape != sin.shape:
        raise ValueError(f"cos {cos.shape} and sin {sin.shape} do not fit heads {heads.shape}")
    out = np.empty(heads.shape, np.float32)
    rotate_into(heads, cos, sin, out)
    return out


@njit(**SERIAL)
def rotate_into(heads: Any, cos: Any, sin: Any, out: Any) -> None:
    """`rotate_heads` into `out`, for use in kernels."""
    half = len(cos)
    for n in range(len(heads)):
        source, into = heads[n], out[n]
        for d in range(half):
            low, high = source[d], source[half + d]
            into[d], into[half + d] = low * cos[d] - high * sin[d], high * cos[d] + low * sin[d]
        for d in range(2 * half, len(into)):
            into[d] = source[d]


def rotate_each(heads: Float32, cos: Float32, sin: Float32) -> Float32:
    """heads [n, H, D], the heads of item i turned by cos[i], sin[i], each [n, rd / 2], as `rotate_heads` does."""
    if cos.shape != sin.shape or len(cos) != len(heads) or 2 * cos.shape[1] > heads.shape[2]:
        raise ValueError(f"cos {cos.shape} and sin {sin.shape} do not fit heads {heads.shape}")
    out = np.empty(heads.shape, np.float32)
    _rotate_each(heads, cos, sin, out)
    return out


@njit(**SERIAL)
def _rotate_each(heads: Any, cos: Any, sin: Any, out: Any) -> None:
    for i in range(len(heads)):
        rotate_into(heads[i], cos[i], sin[i], out[i])
