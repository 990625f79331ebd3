"""Ranges of rows of float32, and the statistics that follow from them. `reference.py` defines them."""

from __future__ import annotations

from typing import Any

import numpy as np

from moorage.kernels.compiling import njit
from moorage.kernels.half import narrow, widen
from moorage.kernels.packed_blocks.codes import EXACT

HIDDEN = np.float32(-np.inf)
"""Stands in rows for outliers and padding: it has no part in a range, and its code is 0."""
_TOP = np.int32(0x7FFFFFFF)
_HIDDEN_ORDER = np.int32(HIDDEN.view(np.int32) ^ 0x7FFFFFFF)
"""What `_in_order` makes of HIDDEN."""


@njit(**EXACT)
def channel_ranges(layout: Any, rows: Any, low: Any, high: Any) -> None:
    """Minimum and maximum of each channel of rows [B, width], without what is hidden; 0 where all is."""
    width = layout.width
    for d in range(width):
        low[d], high[d] = np.float32(np.inf), np.float32(-np.inf)
    for t in range(layout.block_size):
        for d in range(width):
            x = rows[t * width + d]
            low[d] = x if x < low[d] and x != HIDDEN else low[d]
            high[d] = x if x > high[d] else high[d]
    for d in range(layout.head_dim, width):
        low[d], high[d] = np.float32(0), np.float32(0)


@njit(**EXACT)
def to_statistics(layout: Any, scale: Any, zero: Any, count: Any, halves: Any, at: Any) -> None:
    """Makes minima in `scale` and maxima in `zero` scales and zero points, and writes them to `halves[at]` on."""
    for i in range(count):
        low, high = scale[i] + np.float32(0), zero[i] + np.float32(0)  # -0 becomes 0
        if layout.uniform:
            reach, middle = (high - low) / np.float32((1 << layout.bits) - 1), low
        else:
            middle = widen(narrow((low + high) / np.float32(2), halves[0]))
            reach = max(high - middle, middle - low)
        bits = narrow(reach, halves[0])
        bits = np.uint16(bits + np.uint16(widen(bits) < reach))
        halves[at + i], halves[at + count + i] = bits, narrow(middle, halves[0])
        scale[i], zero[i] = widen(bits), middle


@njit(**EXACT)
def token_ranges(rows: Any, block_size: Any, width: Any, low: Any, high: Any) -> None:
    """Lowers `low` and raises `high` to minimum and maximum of each row, without what is hidden.

    The numbers are compared as integers, for which LLVM has vectors: it has none for floats that may be NaN.
    """
    bits, lows, highs = rows.view(np.int32), low.view(np.int32), high.view(np.int32)
    for t in range(block_size):
        least, most = _in_order(lows[t]), _in_order(highs[t])
        for d in range(np.uint64(t * width), np.uint64((t + 1) * width)):
            number = _in_order(bits[d])
            least = min(least, _TOP if number == _HIDDEN_ORDER else number)
            most = max(most, number)
        lows[t], highs[t] = _in_order(least), _in_order(most)


@njit(**EXACT)
def _in_order(bits: Any) -> Any:
    """The bits of a float32 as an integer that is larger where it is larger; and back again."""
    return np.int32(bits ^ (bits >> np.int32(31) & np.int32(0x7FFFFFFF)))
