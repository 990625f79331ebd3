"""One KV head of block attention: an online softmax over tiles of rows (FlashAttention), in fp32."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from moorage.kernels.half import widen
from moorage.kernels.numba_flags import INLINE, SERIAL
from moorage.kernels.simd import (
    LANES,
    LINE_BYTES,
    dots_1,
    dots_2,
    dots_4,
    prefetch,
    weigh_1,
    weigh_2,
    weigh_4,
)
from moorage.kernels.simd_group import (
    WIDE_LANES,
    group_dots_1,
    group_dots_2,
    group_dots_3,
    group_dots_4,
    group_weigh_1,
    group_weigh_2,
    group_weigh_3,
    group_weigh_4,
)
from moorage.kernels.simd_rows import rotate_rows
from moorage.kernels.simd_softmax import row_peak, row_weights
from moorage.kernels.vector_math import exp32

_ONE, _MINUS_TWO = np.float32(1), np.float32(-2)
_LOG2_E, _LN2 = np.float32(1.4426950408889634), np.float32(0.6931471805599453)

ROWS = 32
"""Rows of a tile: its values stay in the L1 cache while all queries of the group read them."""


@njit(**INLINE)
def _rotate(
    stored: Any, at: Any, count: Any, dim: Any, cos: Any, sin: Any, turn_at: Any, turn_step: Any, half: Any, out: Any
) -> None:  # fmt: skip
    """`rotate_rows` for any number of rotated channels."""
    if half % LANES == 0:
        rotate_rows(stored, at, count, dim, cos, sin, turn_at, turn_step, half, out)
        return
    for row in range(count):
        source, into, turn = at + row * dim, row * dim, turn_at + row * turn_step
        for d in range(half):
            low, high = widen(stored[source + d]), widen(stored[source + half + d])
            out[into + d] = low * cos[turn + d] - high * sin[turn + d]
            out[into + half + d] = high * cos[turn + d] + low * sin[turn + d]
        for d in range(2 * half, dim):
            out[into + d] = widen(stored[source + d])


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
def _wide_logits(
    stored: Any, at: Any, count: Any, turns: Any, turn_at: Any, half: Any, rotates: Any, queries: Any, group: Any,
    dim: Any, out: Any,
) -> None:  # fmt: skip
    """`_logits` of whole wide vectors, whose rows are rotated in registers where `rotates`."""
    cos, sin = turns
    last, turn_last = at + (count - 1) * dim, turn_at + (count - 1) * half
    for t in range(0, count, 4):
        row, turn, m = at + t * dim, turn_at + t * half, 0
        while m < group:
            left, q, into = group - m, m * dim, m * ROWS + t
            if left >= 4:
                group_dots_4(
                    stored, row, last, dim, cos, sin, turn, turn_last, half, rotates, queries, q, out, into, ROWS
                )  # fmt: skip
            elif left == 3:
                group_dots_3(
                    stored, row, last, dim, cos, sin, turn, turn_last, half, rotates, queries, q, out, into, ROWS
                )  # fmt: skip
            elif left == 2:
                group_dots_2(
                    stored, row, last, dim, cos, sin, turn, turn_last, half, rotates, queries, q, out, into, ROWS
                )  # fmt: skip
            else:
                group_dots_1(
                    stored, row, last, dim, cos, sin, turn, turn_last, half, rotates, queries, q, out, into, ROWS
                )  # fmt: skip
            m += 4


@njit(**INLINE)
def _add_wide_values(stored: Any, at: Any, count: Any, weights: Any, group: Any, dim: Any, out: Any) -> None:
    """`_add_values` of whole wide vectors."""
    m = 0
    while m < group:
        left = group - m
        if left >= 4:
            group_weigh_4(stored, at, count, dim, weights, m * ROWS, ROWS, out, m * dim)
        elif left == 3:
            group_weigh_3(stored, at, count, dim, weights, m * ROWS, ROWS, out, m * dim)
        elif left == 2:
            group_weigh_2(stored, at, count, dim, weights, m * ROWS, ROWS, out, m * dim)
        else:
            group_weigh_1(stored, at, count, dim, weights, m * ROWS, ROWS, out, m * dim)
        m += 4


@njit(**INLINE)
def _cap(logits: Any, count: Any, softcap: Any) -> None:
    """Bends `count` logits to softcap * tanh(logit / softcap)."""
    for t in range(count):
        falling = exp32(_MINUS_TWO * abs(logits[t]) / softcap)
        bent = softcap * (_ONE - falling) / (_ONE + falling)
        logits[t] = bent if logits[t] > 0 else -bent


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
def _weights(
    logits: Any, at: Any, count: Any, sums: Any, sums_at: Any, dim: Any, peak: Any, total: Any
) -> Any:
    """Turns one query's `count` logits of a tile into weights relative to the peak so far; rescales what was summed.

    Whole vectors are computed: what lies behind the last row gets no weight. Returns the new peak, as a power of
    two, and the new total.
    """
    vectors = (count + WIDE_LANES - 1) // WIDE_LANES
    for t in range(count, vectors * WIDE_LANES):
        logits[at + t] = -np.inf
    row = logits.ctypes.data + 4 * at
    highest = row_peak(row, vectors) * _LOG2_E
    if highest > peak:
        shrink = exp32((peak - highest) * _LN2)
        total *= shrink
        for d in range(dim):
            sums[sums_at + d] *= shrink
        peak = highest
    return peak, total + row_weights(_ONE, row, vectors, _LOG2_E, peak, row)


@njit(**SERIAL)
def attend_head(
    query: Any, stored: Any, base: Any, to_values: Any, offset: Any, rows: Any, first: Any, last: Any,
    rotations: Any, scale: Any, softcap: Any, out: Any, lse: Any,
) -> None:  # fmt: skip
    """Entries [first, last) for query [G, D] into out [G, D], lse [G].

    offset [n] says where in the flat `stored` an entry's block begins; the head's keys lie `base` elements after
    that, their values `to_values` further on. rows (begin, end) [n]. A softcap of 0 leaves logits as they are.
    """
    begin, end = rows
    angle_cos, angle_sin, rotate_keys, offset_cos, offset_sin = rotations
    group, dim = query.shape
    half, offsets = angle_cos.shape[1], (offset_cos.reshape(-1), offset_sin.reshape(-1))
    angles = angle_cos.reshape(-1), angle_sin.reshape(-1)
    scaled, rotated = np.empty(group * dim, np.float32), np.empty(group * dim, np.float32)
    for m in range(group):
        for d in range(dim):
            scaled[m * dim + d] = scale * query[m, d]
    is_wide = dim % WIDE_LANES == 0 and half % WIDE_LANES == 0
    keys, logits = np.empty(ROWS * dim, np.float32), np.empty((group, ROWS), np.float32)
    peak, total = np.full(group, -np.inf, np.float32), np.zeros(group, np.float32)
    out[:] = 0
    line, flat, sums, zero = (
        LINE_BYTES // stored.itemsize,
        logits.reshape(-1),
        out.reshape(-1),
        np.int64(0),
    )
    for e in range(first, last):
        if e + 1 < last:
            coming = offset[e + 1] + base
            for d in range(begin[e + 1] * dim, end[e + 1] * dim, line):
                prefetch(stored, coming + d)
        _rotate(scaled, zero, group, dim, *angles, e * half, zero, half, rotated)
        for row in range(begin[e], end[e], ROWS):
            count = min(ROWS, end[e] - row)
            key_at = offset[e] + base + row * dim
            value_at = key_at + to_values
            for d in range(0, count * dim, line):
                prefetch(stored, value_at + d)
            if is_wide:
                _wide_logits(
                    stored,
                    key_at,
                    count,
                    offsets,
                    row * half,
                    half,
                    rotate_keys[e] != 0,
                    rotated,
                    group,
                    dim,
                    flat,
                )
            elif rotate_keys[e] and half:
                _rotate(stored, key_at, count, dim, *offsets, row * half, half, half, keys)
                _logits(keys, zero, count, rotated, group, dim, flat)
            else:
                _logits(stored, key_at, count, rotated, group, dim, flat)
            for m in range(group):
                if softcap > 0:
                    _cap(logits[m], count, softcap)
                peak[m], total[m] = _weights(flat, m * ROWS, count, sums, m * dim, dim, peak[m], total[m])
            if is_wide:
                _add_wide_values(stored, value_at, count, flat, group, dim, sums)
            else:
                _add_values(stored, value_at, count, flat, group, dim, sums)
    for m in range(group):
        if total[m] == 0:
            lse[m] = -np.inf
            continue
        lse[m] = peak[m] * _LN2 + np.log(total[m])
        out[m] *= 1 / total[m]
