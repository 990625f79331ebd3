"""Codes of keys of which each channel makes up for the errors of those before it. `reference.py` defines them.

A query meets all channels of a key at once, so their errors add up in its score. Coding channel by channel, the error
of each is taken off those that follow, by shares that calibration measured: GPTQ (ICLR 2023), for keys.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moorage.kernels.compiling import njit
from moorage.kernels.half import widen
from moorage.kernels.packed_blocks.codes import EXACT, code_levels
from moorage.kernels.packed_blocks.ranges import HIDDEN


@njit(**EXACT)
def code_with_feedback(
    layout: Any, tables: Any, head: Any, source: Any, at: Any, rows: Any, scale: Any, zero: Any, inverse: Any,
    codes: Any,
) -> None:  # fmt: skip
    """The codes [B, width] of the keys at `source[at]`; outliers are HIDDEN in rows [B, width]."""
    size, dim, width = np.uint64(layout.block_size), layout.head_dim, np.uint64(layout.width)
    wanted = np.empty(size * np.uint64(dim), np.float32)  # [D, B]: a channel's numbers lie side by side
    for t in range(size):
        for d in range(np.uint64(dim)):
            wanted[d * size + t] = widen(source[np.uint64(at) + t * np.uint64(dim) + d])
    exact = wanted.copy()
    normal, errors, found = np.empty(size, np.float32), np.empty(size, np.float32), np.empty(size, np.uint8)
    levels, shares = tables.key_levels, tables.key_feedback[head]
    codes[:] = 0
    for d in range(dim):
        first = np.uint64(d) * size
        for t in range(size):
            x = (wanted[first + t] - zero[d]) * inverse[d]
            normal[t] = HIDDEN if rows[t * width + np.uint64(d)] == HIDDEN else x
        code_levels(normal, layout.block_size, layout.bits, tables.key_limits, found)
        for t in range(size):
            stored = zero[d] + scale[d] * levels[found[t]]
            stored = exact[first + t] if normal[t] == HIDDEN else stored
            errors[t] = wanted[first + t] - stored
            codes[t * width + np.uint64(d)] = found[t]
        for later in range(d + 1, dim):
            share, into = shares[d, later], np.uint64(later) * size
            for t in range(size):
                wanted[into + t] -= share * errors[t]
