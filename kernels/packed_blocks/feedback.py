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

_GROUP = 8
"""Channels whose errors are taken off later ones at once."""


@njit(**EXACT)
def code_with_feedback(
    layout: Any, tables: Any, head: Any, source: Any, at: Any, rows: Any, scale: Any, zero: Any, inverse: Any,
    codes: Any,
) -> None:  # fmt: skip
    """The codes [B, width] of the keys at `source[at]`; outliers are HIDDEN in rows [B, width]."""
    size, dim, width = np.uint64(layout.block_size), layout.head_dim, np.uint64(layout.width)
    count = size * np.uint64(dim)
    exact, shown = np.empty(count, np.float32), np.empty(count, np.float32)
    for d in range(np.uint64(dim)):
        for t in range(size):  # [D, B]: a channel's numbers lie side by side
            exact[d * size + t] = widen(source[np.uint64(at) + t * np.uint64(dim) + d])
            shown[d * size + t] = rows[t * width + d]
    wanted, shares = exact.copy(), tables.key_feedback[head]
    errors, found = np.empty(np.uint64(_GROUP) * size, np.float32), np.empty(count, np.uint8)
    for begin in range(0, dim, _GROUP):
        end = min(begin + _GROUP, dim)
        for d in range(begin, end):
            first = d * layout.block_size
            own = errors[first - begin * layout.block_size :]
            channel = wanted[first:], exact[first:], shown[first:]
            _code_channel(layout, tables, (scale[d], zero[d], inverse[d]), channel, own, found[first:])
            for later in range(d + 1, end):
                share, into = shares[d, later], np.uint64(later) * size
                for t in range(size):
                    wanted[into + t] -= share * own[t]
        for later in range(end, dim):
            _take_off(shares, begin, later, errors, size, wanted)
    codes[:] = 0
    for t in range(size):
        for d in range(np.uint64(dim)):
            codes[t * width + d] = found[d * size + t]


@njit(**EXACT)
def _code_channel(
    layout: Any, tables: Any, statistics: Any, channel: Any, errors: Any, codes: Any
) -> None:  # fmt: skip
    """Codes one channel [B]; errors are what was wanted less what is stored. Outliers are HIDDEN in `shown`."""
    size, levels = np.uint64(layout.block_size), tables.key_levels
    (scale, zero, inverse), (wanted, exact, shown) = statistics, channel
    for t in range(size):
        errors[t] = HIDDEN if shown[t] == HIDDEN else (wanted[t] - zero) * inverse
    code_levels(errors, layout.block_size, layout.bits, tables.key_limits, codes)
    for t in range(size):
        stored = zero + scale * levels[codes[t]]
        errors[t] = wanted[t] - (exact[t] if shown[t] == HIDDEN else stored)


@njit(**EXACT)
def _take_off(shares: Any, begin: Any, later: Any, errors: Any, size: Any, wanted: Any) -> None:
    """Takes the errors [_GROUP, B] of the channels from `begin` on off a later one, one after the other."""
    a, b, c, e = (
        shares[begin, later],
        shares[begin + 1, later],
        shares[begin + 2, later],
        shares[begin + 3, later],
    )
    f, g, h, i = (
        shares[begin + 4, later], shares[begin + 5, later], shares[begin + 6, later], shares[begin + 7, later]
    )  # fmt: skip
    into, n = np.uint64(later) * size, size
    two, three, four, five = np.uint64(2) * n, np.uint64(3) * n, np.uint64(4) * n, np.uint64(5) * n
    six, seven = np.uint64(6) * n, np.uint64(7) * n
    for t in range(n):
        x = wanted[into + t] - a * errors[t] - b * errors[n + t] - c * errors[two + t] - e * errors[three + t]
        x = x - f * errors[four + t] - g * errors[five + t]
        wanted[into + t] = x - h * errors[six + t] - i * errors[seven + t]
