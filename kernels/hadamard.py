"""The normalised Walsh-Hadamard transform of vectors of heads, which spreads each channel over all others.

It is orthogonal and symmetric, so dot products stay what they are and it is its own inverse. A head size that is no
power of two is turned in runs of the largest power of two that divides it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moorage.kernels.compiling import njit
from moorage.kernels.numba_flags import SERIAL


def hadamard_matrix(dim: int) -> NDArray[np.float64]:
    """[D, D]: the transform from its definition."""
    run = dim & -dim
    signs = [[(-1.0) ** (i & j).bit_count() for j in range(run)] for i in range(run)]
    return np.asarray(np.kron(np.eye(dim // run), np.array(signs) / math.sqrt(run)), np.float64)


@njit(**SERIAL)
def turn_heads(heads: Any) -> None:
    """Transforms heads [n, D] f32, contiguous, in place."""
    flat, dim = heads.reshape(-1), heads.shape[1]
    run, step = dim & -dim, 1
    while step < run:
        for first in range(0, len(flat), 2 * step):
            for i in range(first, first + step):
                low, high = flat[i], flat[i + step]
                flat[i], flat[i + step] = low + high, low - high
        step *= 2
    share = np.float32(1 / math.sqrt(run))
    for i in range(len(flat)):
        flat[i] *= share
