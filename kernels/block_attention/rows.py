"""One KV head of block attention for successive positions of one session: every key is read once for all of them.

Each position has entries of its own, see `attend_head`, and gets its result: the order of sums is the same. Where
positions see the same rows of a block alike, these are widened and rotated once for four of their queries.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from moorage.kernels.block_attention.head import (
    _LN2,
    _ONE,
    _add_values,
    _add_wide_values,
    _weights,
    cap_logits,
)
from moorage.kernels.block_attention.logits import ROWS, asks_ahead, rotate_into_tile, tile_logits
from moorage.kernels.compiling import njit
from moorage.kernels.numba_flags import SERIAL
from moorage.kernels.simd import LINE_BYTES, prefetch
from moorage.kernels.simd_group import WIDE_LANES


class Entries(NamedTuple):
    """What R positions see, E entries at most for each; see `attend_head`."""

    count: Any
    """[R]"""
    order: Any
    """[R, E], ascending: entries of two positions with the same number are of the same block and part."""
    offset: Any
    begin: Any
    end: Any
    rotates: Any
    """[R, E]"""
    cos: Any
    sin: Any
    """[R, E, rd / 2]"""


@njit(**SERIAL)
def attend_rows(
    query: Any, stored: Any, base: Any, to_values: Any, entries: Any, offset_cos: Any, offset_sin: Any, scale: Any,
    softcap: Any, out: Any, lse: Any,
) -> None:  # fmt: skip
    """`attend_head` of query [R, G, D] into out [R, G, D], lse [R, G], each position over its own entries."""
    num_rows, group, dim = query.shape
    half, turn_cos, turn_sin = entries.cos.shape[2], offset_cos.reshape(-1), offset_sin.reshape(-1)
    scaled, rotated = np.empty((num_rows, group * dim), np.float32), np.empty(query.size, np.float32)
    for r in range(num_rows):
        for m in range(group):
            for d in range(dim):
                scaled[r, m * dim + d] = scale * query[r, m, d]
    is_wide = dim % WIDE_LANES == 0 and half % WIDE_LANES == 0
    spreads = asks_ahead(dim, half)
    keys, logits = np.empty(ROWS * dim, np.float32), np.empty((num_rows * group, ROWS), np.float32)
    peak, total = np.full(num_rows * group, -np.inf, np.float32), np.zeros(num_rows * group, np.float32)
    sums, flat, zero = np.zeros(query.size, np.float32), logits.reshape(-1), np.int64(0)
    line, at = LINE_BYTES // stored.itemsize, np.zeros(num_rows, np.int64)
    first, last, high = _together(entries, at)
    while first < last:
        e, each = at[first], (last - first) * group
        begin, rotates = entries.begin[first, e], entries.rotates[first, e] != 0
        ahead = zero
        if e + 1 < entries.count[first]:
            ahead = entries.offset[first, e + 1] - entries.offset[first, e]
        if e + 1 < entries.count[first] and not spreads:
            coming = entries.offset[first, e + 1] + base
            for d in range(entries.begin[first, e + 1] * dim, entries.end[first, e + 1] * dim, line):
                prefetch(stored, coming + d)
        for r in range(first, last):
            into = rotated[(r - first) * group * dim :]
            cos, sin = entries.cos[r, at[r]], entries.sin[r, at[r]]
            rotate_into_tile(scaled[r], zero, group, dim, cos, sin, zero, zero, half, into)
        own = sums[first * group * dim :]
        for row in range(begin, high, ROWS):
            count = min(ROWS, high - row)
            key_at = entries.offset[first, e] + base + row * dim
            value_at = key_at + to_values
            for d in range(0, 0 if spreads else count * dim, line):
                prefetch(stored, value_at + d)
            tile_logits(
                stored, key_at, count, ahead, turn_cos, turn_sin, row * half, half, rotates, rotated, each, dim, keys,
                flat,
            )  # fmt: skip
            for m in range(each):
                r = first + m // group
                seen, q = min(count, entries.end[r, at[r]] - row), first * group + m
                if seen > 0:
                    if softcap > 0:
                        cap_logits(logits[m], seen, softcap)
                    peak[q], total[q] = _weights(flat, m * ROWS, seen, sums, q * dim, dim, peak[q], total[q])
                for t in range(-(-max(seen, 0) // WIDE_LANES) * WIDE_LANES, count):
                    logits[m, t] = 0
            if is_wide:
                _add_wide_values(stored, value_at, count, ahead, flat, each, dim, own)
            else:
                _add_values(stored, value_at, count, flat, each, dim, own)
        at[first:last] += 1
        first, last, high = _together(entries, at)
    for q in range(num_rows * group):
        r, m = divmod(q, group)
        lse[r, m] = -np.inf
        share = _ONE
        if total[q] != 0:
            lse[r, m] = peak[q] * _LN2 + np.log(total[q])
            share = _ONE / total[q]
        for d in range(dim):
            out[r, m, d] = sums[q * dim + d] * share


@njit(**SERIAL)
def _together(entries: Any, at: Any) -> Any:
    """(first, last, end): the positions whose entries come next and begin alike, and where the longest of them ends.

    first == last where no entry is left.
    """
    first, num_rows = np.int64(-1), len(at)
    for r in range(num_rows):
        left = at[r] < entries.count[r]
        if left and (first < 0 or entries.order[r, at[r]] < entries.order[first, at[first]]):
            first = np.int64(r)
    if first < 0:
        return np.int64(0), np.int64(0), np.int64(0)
    e = at[first]
    high, last = np.int64(entries.end[first, e]), first + 1
    while last < num_rows and at[last] < entries.count[last]:
        other = at[last]
        alike = entries.order[last, other] == entries.order[first, e]
        alike = alike and entries.begin[last, other] == entries.begin[first, e]
        if not alike or entries.rotates[last, other] != entries.rotates[first, e]:
            break
        high = max(high, np.int64(entries.end[last, other]))
        last += 1
    return first, last, high
