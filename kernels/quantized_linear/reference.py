"""The product from its definition, in fp64, weight by weight."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Codes = NDArray[np.int64]


def dequantize(
    codes: Codes, scales: Float64, minima: Float64 | None, meaning: Sequence[float] | None
) -> Float64:
    """Weights of `codes` [out, in] with scales and minima [out, groups]; a code means `meaning[code]`, or itself."""
    weights = np.empty(codes.shape)
    size = codes.shape[1] // scales.shape[1]
    for row, channel in np.ndindex(codes.shape):
        code, group = int(codes[row, channel]), channel // size
        value = float(code) if meaning is None else meaning[code]
        weights[row, channel] = scales[row, group] * value + (0 if minima is None else minima[row, group])
    return weights


def quantized_linear(
    x: Float64, codes: Codes, scales: Float64, minima: Float64 | None, meaning: Sequence[float] | None
) -> Float64:
    """x [T, in] times the transposed weights of `dequantize`."""
    return x @ dequantize(codes, scales, minima, meaning).T
