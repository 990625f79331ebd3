"""Ranges of rows of float32, and the statistics that follow from them. `reference.py` defines them."""

from __future__ import annotations

from typing import Any

import numpy as np

from moorage.kernels.compiling import njit
from moorage.kernels.half import narrow, widen
from moorage.kernels.numba_flags import SERIAL
from moorage.kernels.packed_blocks.codes import EXACT

HIDDEN = np.float32(-np.inf)
"""Stands in rows for outliers and padding: it has no part in a range, and its code is 0."""


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
        low, high = scale[i], zero[i]
        if layout.uniform:
            reach, middle = (high - low) / np.float32((1 << layout.bits) - 1), low
        else:
            middle = widen(narrow((low + high) / np.float32(2), halves[0]))
            reach = max(high - middle, middle - low)
        bits = narrow(reach, halves[0])
        bits = np.uint16(bits + np.uint16(widen(bits) < reach))
        halves[at + i], halves[at + count + i] = bits, narrow(middle, halves[0])
        scale[i], zero[i] = widen(bits), middle


@njit(**{**SERIAL, "fastmath": {"nnan", "nsz"}})
def token_ranges(rows: Any, block_size: Any, width: Any, low: Any, high: Any) -> None:
    """Lowers `low` and raises `high` to minimum and maximum of each row, without what is hidden."""
    for t in range(block_size):
        least, most = low[t], high[t]
        for d in range(t * width, (t + 1) * width):
            x = rows[d]
            shown = np.float32(np.inf) if x == HIDDEN else x
            least = min(least, shown)
            most = max(most, x)
        low[t], high[t] = least, most
