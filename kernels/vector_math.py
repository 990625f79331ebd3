"""Elementwise helpers that loops inline and vectorise; libm's expf would be one call per element."""

from __future__ import annotations

from typing import Any

import numpy as np

from moorage.kernels.compiling import njit

_ROUND = np.float32(1.5 * 2**23)
_LOG2_E = np.float32(1.4426950408889634)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_SMALLEST, _LARGEST = np.float32(-87.33), np.float32(88.37)
_C0, _C1, _C2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_C3, _C4, _C5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
_ONE, _ZERO = np.float32(1), np.float32(0)
_ONE_BITS = 0x3F800000

MAX_LANES = 16
WIDE_LANES = 64
"""Enough that no lane waits for its last comparison to be stored."""


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def exp32(x: Any) -> Any:
    """e**x of a float32 to 2 ulp (Cephes expf); 0 below -87.3, exp(88.37) above that, NaN for NaN.

    Not compiled with "reassoc": adding and taking away 1.5 * 2**23 is what rounds to an integer.
    """
    clipped = _SMALLEST if x < _SMALLEST else (_LARGEST if x > _LARGEST else x)
    shifted = clipped * _LOG2_E + _ROUND
    power = shifted - _ROUND
    rest = clipped - power * _LN2_HIGH
    rest = rest - power * _LN2_LOW
    series = _C0 * rest + _C1
    series = series * rest + _C2
    series = series * rest + _C3
    series = series * rest + _C4
    series = series * rest + _C5
    series = series * (rest * rest) + rest + _ONE
    bits = np.float32(shifted).view(np.int32) << 23
    scale = np.int32(bits + _ONE_BITS).view(np.float32)
    return _ZERO if x < _SMALLEST else series * scale


@njit(cache=True, nogil=True, error_model="numpy")
def max32(row: Any) -> Any:
    """Largest element of a float32 row, -inf if empty; NaN is passed over. LLVM vectorises no NaN-safe maximum."""
    lanes = np.full(MAX_LANES, -np.inf, np.float32)
    whole = len(row) - len(row) % MAX_LANES
    for start in range(0, whole, MAX_LANES):
        part = row[start : start + MAX_LANES]
        for lane in range(MAX_LANES):
            lanes[lane] = part[lane] if part[lane] > lanes[lane] else lanes[lane]
    largest = np.float32(-np.inf)
    for value in lanes:
        largest = value if value > largest else largest
    for value in row[whole:]:
        largest = value if value > largest else largest
    return largest


@njit(cache=True, nogil=True, error_model="numpy")
def extremes32(row: Any) -> Any:
    """(smallest, largest) element of a long float32 row, (inf, -inf) if empty; NaN is passed over."""
    lows, highs = np.full(WIDE_LANES, np.inf, np.float32), np.full(WIDE_LANES, -np.inf, np.float32)
    whole = len(row) - len(row) % WIDE_LANES
    for start in range(0, whole, WIDE_LANES):
        part = row[start : start + WIDE_LANES]
        for lane in range(WIDE_LANES):
            lows[lane] = part[lane] if part[lane] < lows[lane] else lows[lane]
        for lane in range(WIDE_LANES):
            highs[lane] = part[lane] if part[lane] > highs[lane] else highs[lane]
    low, high = np.float32(np.inf), np.float32(-np.inf)
    for lane in range(WIDE_LANES):
        low, high = min(low, lows[lane]), max(high, highs[lane])
    for value in row[whole:]:
        low = value if value < low else low
        high = value if value > high else high
    return low, high
