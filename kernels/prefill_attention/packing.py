"""Keys and values as operands of the register tiles: packed once, read by every block of queries."""

from __future__ import annotations

from typing import Any

from moorage.kernels.compiling import njit
from moorage.kernels.numba_flags import SERIAL
from moorage.kernels.simd_lanes import LANES

PANEL = 4 * LANES
"""Keys of a panel, the columns of one tile of logits."""


@njit(**SERIAL)
def pack_keys(words: Any, at: Any, row_stride: Any, count: Any, panel: Any) -> None:
    """panel [D words, PANEL] = the transposed rows of `words` from `at` on; 0 behind the first `count` rows."""
    for d in range(panel.shape[0]):
        line = panel[d]
        for c in range(count):
            line[c] = words[at + c * row_stride + d]
        for c in range(count, PANEL):
            line[c] = 0


@njit(**SERIAL)
def pack_values(stored: Any, at: Any, row_stride: Any, count: Any, dim: Any, panel: Any) -> None:
    """panel [steps, columns, n] = the values [count, dim] from `at` on, n rows beside each other in a word.

    n is 2 for bfloat16 and 1 for float32. 0 stands behind the last row and column.
    """
    steps, columns, beside = panel.shape
    for step in range(steps):
        for i in range(beside):
            row = step * beside + i
            begin, width = at + row * row_stride, dim if row < count else 0
            for d in range(width):
                panel[step, d, i] = stored[begin + d]
            for d in range(width, columns):
                panel[step, d, i] = 0


def padded(dim: int) -> int:
    """Columns of packed values: whole vectors."""
    return -(-dim // LANES) * LANES


def word_counts(dim: int, itemsize: int) -> tuple[int, int]:
    """(words of a key, elements of a word)."""
    beside = 4 // itemsize
    return -(-dim // beside), beside
