"""One KV head of block attention: an online softmax over tiles of rows (FlashAttention), in fp32."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from moorage.kernels.half import widen
from moorage.kernels.numba_flags import INLINE, SERIAL
from moorage.kernels.simd import LINE_BYTES, dots_1, dots_2, dots_4, prefetch, weigh_1, weigh_2, weigh_4
from moorage.kernels.vector_math import exp32, max32

ROWS = 32
"""Rows of a tile: its values stay in the L1 cache while all queries of the group read them."""


@njit(**INLINE)
def _rotate(row: Any, cos: Any, sin: Any, factor: Any, into: Any) -> None:
    """into [D] = factor * row [D], channel pairs (i, i + rd / 2) rotated, as in GPT-NeoX."""
    half = len(cos)
    for d in range(half):
        low, high = factor * widen(row[d]), factor * widen(row[half + d])
        into[d], into[half + d] = low * cos[d] - high * sin[d], high * cos[d] + low * sin[d]
    for d in range(2 * half, len(into)):
        into[d] = factor * widen(row[d])


@njit(**INLINE)
def _logits(stored: Any, at: Any, count: Any, queries: Any, group: Any, dim: Any, out: Any) -> None:
    """out[m * ROWS + t] = query m . row t; the last tile reads its last row again instead of going on."""
    for t in range(0, count, 4):
        a, last = at + t * dim, at + (count - 1) * dim
        b, c, d = min(a + dim, last), min(a + 2 * dim, last), min(a + 3 * dim, last)
        m = 0
        while m + 4 <= group:
            dots_4(stored, a, b, c, d, queries, m * dim, dim, out, m * ROWS + t, ROWS, True)
            m += 4
        if m + 2 <= group:
            dots_2(stored, a, b, c, d, queries, m * dim, dim, out, m * ROWS + t, ROWS, True)
            m += 2
        if m < group:
            dots_1(stored, a, b, c, d, queries, m * dim, dim, out, m * ROWS + t, ROWS, True)


@njit(**INLINE)
def _add_values(stored: Any, at: Any, count: Any, weights: Any, group: Any, dim: Any, out: Any) -> None:
    """out[m] += the sum of value rows by the weights of query m."""
    m = 0
    while m + 4 <= group:
        weigh_4(stored, at, count, weights, m * ROWS, ROWS, dim, out, m * dim)
        m += 4
    if m + 2 <= group:
        weigh_2(stored, at, count, weights, m * ROWS, ROWS, dim, out, m * dim)
        m += 2
    if m < group:
        weigh_1(stored, at, count, weights, m * ROWS, ROWS, dim, out, m * dim)


@njit(**INLINE)
def _weights(logits: Any, out: Any, peak: Any, total: Any) -> None:
    """Turns one query's logits into weights relative to the peak so far; rescales what was summed before."""
    highest = max32(logits)
    if highest > peak[0]:
        shrink = exp32(peak[0] - highest)
        total[0] *= shrink
        for d in range(len(out)):
            out[d] *= shrink
        peak[0] = highest
    added = np.float32(0)
    for t in range(len(logits)):
        weight = exp32(logits[t] - peak[0])
        logits[t] = weight
        added += weight
    total[0] += added


@njit(**SERIAL)
def attend_head(
    query: Any, memories: Any, base: Any, to_values: Any, places: Any, rows: Any, first: Any, last: Any,
    rotations: Any, scale: Any, out: Any, lse: Any,
) -> None:  # fmt: skip
    """Entries [first, last) for query [G, D] into out [G, D], lse [G].

    places (memory, offset) [n] say in which of the flat `memories` an entry's block begins, and where; the head's
    keys lie `base` elements after that, their values `to_values` further on. rows (begin, end) [n].
    """
    memory, offset = places
    begin, end = rows
    angle_cos, angle_sin, rotate_keys, offset_cos, offset_sin = rotations
    group, dim = query.shape
    rotated, keys = np.empty((group, dim), np.float32), np.empty((ROWS, dim), np.float32)
    logits, sums = np.empty((group, ROWS), np.float32), out.reshape(-1)
    peak, total = np.full(group, -np.inf, np.float32), np.zeros(group, np.float32)
    out[:] = 0
    line = LINE_BYTES // memories[0].itemsize
    for e in range(first, last):
        stored = memories[memory[e]]
        if e + 1 < last:
            coming = offset[e + 1] + base
            for d in range(begin[e + 1] * dim, end[e + 1] * dim, line):
                prefetch(memories[memory[e + 1]], coming + d)
        for m in range(group):
            _rotate(query[m], angle_cos[e], angle_sin[e], scale, rotated[m])
        for row in range(begin[e], end[e], ROWS):
            count = min(ROWS, end[e] - row)
            key_at = offset[e] + base + row * dim
            value_at = key_at + to_values
            for d in range(0, count * dim, line):
                prefetch(stored, value_at + d)
            if rotate_keys[e] and offset_cos.shape[1]:
                for t in range(count):
                    key = stored[key_at + t * dim : key_at + (t + 1) * dim]
                    _rotate(key, offset_cos[row + t], offset_sin[row + t], np.float32(1), keys[t])
                _logits(keys.reshape(-1), 0, count, rotated.reshape(-1), group, dim, logits.reshape(-1))
            else:
                _logits(stored, key_at, count, rotated.reshape(-1), group, dim, logits.reshape(-1))
            for m in range(group):
                _weights(logits[m, :count], out[m], peak[m : m + 1], total[m : m + 1])
            _add_values(stored, value_at, count, logits.reshape(-1), group, dim, sums)
    for m in range(group):
        if total[m] == 0:
            lse[m] = -np.inf
            continue
        lse[m] = peak[m] + np.log(total[m])
        out[m] *= 1 / total[m]
