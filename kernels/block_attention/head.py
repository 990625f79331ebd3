"""One KV head of block attention: an online softmax over tiles of rows (FlashAttention), in fp32."""

from __future__ import annotations

from typing import Any

import numpy as np

from moorage.kernels.addresses import floats_at
from moorage.kernels.block_attention.logits import ROWS, asks_ahead, rotate_into_tile, tile_logits
from moorage.kernels.compiling import njit
from moorage.kernels.numba_flags import INLINE, SERIAL
from moorage.kernels.simd import LINE_BYTES, prefetch, weigh_1, weigh_2, weigh_4
from moorage.kernels.simd_group import WIDE_LANES, group_weigh_1, group_weigh_2, group_weigh_3, group_weigh_4
from moorage.kernels.simd_softmax import row_peak, row_weights
from moorage.kernels.vector_math import exp32

_ONE, _MINUS_TWO = np.float32(1), np.float32(-2)
_LOG2_E, _LN2 = np.float32(1.4426950408889634), np.float32(0.6931471805599453)


@njit(**INLINE)
def _add_wide_values(
    stored: Any, at: Any, count: Any, ahead: Any, weights: Any, group: Any, dim: Any, out: Any
) -> None:
    """`_add_values` of whole wide vectors. What lies `ahead` elements after each row is asked for."""
    m = 0
    while m < group:
        left = group - m
        if left >= 4:
            group_weigh_4(stored, at, count, ahead, dim, weights, m * ROWS, ROWS, out, m * dim)
        elif left == 3:
            group_weigh_3(stored, at, count, ahead, dim, weights, m * ROWS, ROWS, out, m * dim)
        elif left == 2:
            group_weigh_2(stored, at, count, ahead, dim, weights, m * ROWS, ROWS, out, m * dim)
        else:
            group_weigh_1(stored, at, count, ahead, dim, weights, m * ROWS, ROWS, out, m * dim)
        m += 4


@njit(**INLINE)
def capped(logit: Any, softcap: Any) -> Any:
    """softcap * tanh(logit / softcap)."""
    falling = exp32(_MINUS_TWO * abs(logit) / softcap)
    bent = softcap * (_ONE - falling) / (_ONE + falling)
    return bent if logit > 0 else -bent


@njit(**INLINE)
def cap_logits(logits: Any, count: Any, softcap: Any) -> None:
    """Bends `count` logits to softcap * tanh(logit / softcap)."""
    for t in range(count):
        logits[t] = capped(logits[t], softcap)


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
    half, size = angle_cos.shape[1], group * dim
    # Arrays by address, since compiled code counts the users of others at each use.
    room = np.empty(2 * size + ROWS * (dim + group) + 2 * group + LINE_BYTES, np.float32)
    at = -(-room.ctypes.data // LINE_BYTES) * LINE_BYTES
    keys, flat = floats_at(at, ROWS * dim), floats_at(at + 4 * ROWS * dim, ROWS * group)
    at += 4 * ROWS * (dim + group)
    scaled, rotated = floats_at(at, size), floats_at(at + 4 * size, size)
    peak, total = floats_at(at + 8 * size, group), floats_at(at + 8 * size + 4 * group, group)
    angles_cos, angles_sin = (
        floats_at(angle_cos.ctypes.data, angle_cos.size),
        floats_at(angle_sin.ctypes.data, angle_sin.size),
    )
    turn_cos, turn_sin = (
        floats_at(offset_cos.ctypes.data, offset_cos.size),
        floats_at(offset_sin.ctypes.data, offset_sin.size),
    )
    for m in range(group):
        peak[m], total[m] = -np.inf, 0
        for d in range(dim):
            scaled[m * dim + d] = scale * query[m, d]
    is_wide = dim % WIDE_LANES == 0 and half % WIDE_LANES == 0
    spreads = asks_ahead(dim, half)
    out[:] = 0
    line, sums, zero = LINE_BYTES // stored.itemsize, floats_at(out.ctypes.data, out.size), np.int64(0)
    for e in range(first, last):
        if e + 1 < last and not spreads:
            coming = offset[e + 1] + base
            for d in range(begin[e + 1] * dim, end[e + 1] * dim, line):
                prefetch(stored, coming + d)
        rotate_into_tile(scaled, zero, group, dim, angles_cos, angles_sin, e * half, zero, half, rotated)
        for row in range(begin[e], end[e], ROWS):
            count = min(ROWS, end[e] - row)
            key_at = offset[e] + base + row * dim
            value_at = key_at + to_values
            ahead = np.int64(ROWS * dim)
            if row + ROWS >= end[e]:
                ahead = offset[e + 1] + base + begin[e + 1] * dim - key_at if e + 1 < last else zero
            for d in range(0, 0 if spreads else count * dim, line):
                prefetch(stored, value_at + d)
            tile_logits(
                stored, key_at, count, ahead, turn_cos, turn_sin, row * half, half, rotate_keys[e] != 0, rotated,
                group, dim, keys, flat,
            )  # fmt: skip
            for m in range(group):
                if softcap > 0:
                    cap_logits(flat[m * ROWS : (m + 1) * ROWS], count, softcap)
                peak[m], total[m] = _weights(flat, m * ROWS, count, sums, m * dim, dim, peak[m], total[m])
            if is_wide:
                _add_wide_values(stored, value_at, count, ahead, flat, group, dim, sums)
            else:
                _add_values(stored, value_at, count, flat, group, dim, sums)
    share_sums(peak, total, out, lse)
    room[0] = 0  # until here it is held


@njit(**SERIAL)
def share_sums(peak: Any, total: Any, out: Any, lse: Any) -> None:
    """Makes sums out [G, D] of weighted values their means, and writes lse [G]; a query that saw no key has -inf."""
    for m in range(len(out)):
        if total[m] == 0:
            lse[m] = -np.inf
            continue
        lse[m] = peak[m] * _LN2 + np.log(total[m])
        share = _ONE / total[m]
        # Element by element: arrays that might not fit each other take seconds to compile.
        for d in range(out.shape[1]):
            out[m, d] *= share
