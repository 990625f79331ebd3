"""Block attention of many queries of one KV head, for successive positions of one session: a query a lane.

Keys of a tile are widened and rotated once for all queries. Results have the bits of `attend_head`. Query m of
position r of R has lane m * R + r.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from moorage.kernels.addresses import floats_at
from moorage.kernels.block_attention.head import _LN2, _LOG2_E, share_sums
from moorage.kernels.block_attention.logits import ROWS
from moorage.kernels.compiling import njit
from moorage.kernels.numba_flags import INLINE, SERIAL
from moorage.kernels.simd import LINE_BYTES
from moorage.kernels.simd_lanes import LANES
from moorage.kernels.simd_queries import dot_rows, turn_queries, widen_rows
from moorage.kernels.simd_query_sums import add_values, tile_peaks, tile_weights
from moorage.kernels.vector_math import exp32


class Steps(NamedTuple):
    """What is attended one after the other: blocks, or parts of them, each by positions that see it alike."""

    offset: Any
    begin: Any
    end: Any
    """[S]: rows that the longest of the positions sees; see `attend_head`."""
    rotates: Any
    """[S]"""
    limit: Any
    """int32 [S, lanes]: where a query ends; 0 where it does not see the block."""
    cos: Any
    sin: Any
    """[S + 1, half, lanes]: angles of the queries."""


@njit(**SERIAL)
def empty_steps(most: Any, num_queries: Any, half: Any) -> Any:
    """At most `most` steps of `num_queries` queries."""
    lanes = (num_queries + LANES - 1) // LANES * LANES
    return Steps(
        np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.uint8),
        np.zeros((most, lanes), np.int32), np.empty((most + 1, half, lanes), np.float32),
        np.empty((most + 1, half, lanes), np.float32),
    )  # fmt: skip


@njit(**SERIAL)
def attend_lanes(
    query: Any, stored: Any, base: Any, to_values: Any, count: Any, steps: Any, offset_cos: Any, offset_sin: Any,
    scale: Any, out: Any, lse: Any,
) -> None:  # fmt: skip
    """The first `count` of `steps` for query [R, G, D] into out [R, G, D], lse [R, G]; see `attend_head`."""
    num_rows, group, dim = query.shape
    lanes, half, num_queries = steps.limit.shape[1], steps.cos.shape[1], num_rows * group
    vectors = lanes // LANES
    room = np.zeros(2 * dim * lanes + ROWS * (dim + LANES) + 2 * LANES + 2 * lanes + LINE_BYTES, np.float32)
    # Arrays by address, since compiled code counts the users of others at each use.
    scaled_at = -(-room.ctypes.data // LINE_BYTES) * LINE_BYTES
    turned_at = scaled_at + 4 * dim * lanes
    keys_at = turned_at + 4 * dim * lanes
    logits_at = keys_at + 4 * ROWS * dim
    highest_at = logits_at + 4 * ROWS * LANES
    peaks_at = highest_at + 4 * LANES
    totals_at = peaks_at + 4 * lanes
    scaled, highest = floats_at(scaled_at, dim * lanes), floats_at(highest_at, LANES)
    peaks, totals = floats_at(peaks_at, lanes), floats_at(totals_at, lanes)
    sums, limits = np.zeros((num_queries, dim), np.float32), np.zeros(LANES, np.int32)
    cos_at, sin_at, limits_at, sums_at = (
        steps.cos.ctypes.data,
        steps.sin.ctypes.data,
        limits.ctypes.data,
        sums.ctypes.data,
    )
    turn_cos, turn_sin = offset_cos.reshape(-1), offset_sin.reshape(-1)
    for lane in range(lanes):
        peaks[lane] = -np.inf
    for r in range(num_rows):
        for m in range(group):
            for d in range(dim):
                scaled[d * lanes + m * num_rows + r] = scale * query[r, m, d]
    for s in range(count):
        angles = 4 * s * half * lanes
        for v in range(vectors):
            by = 4 * v * LANES
            turn_queries(
                scaled_at + by, cos_at + angles + by, sin_at + angles + by, half, lanes, turned_at + by * dim
            )
        begin, end, rotates = steps.begin[s], steps.end[s], steps.rotates[s] != 0
        for row in range(begin, end, ROWS):
            number = min(ROWS, end - row)
            key_at, ahead = steps.offset[s] + base + row * dim, np.int64(ROWS * dim)
            if row + ROWS >= end:
                ahead = np.int64(0)
                if s + 1 < count:
                    ahead = steps.offset[s + 1] + base + steps.begin[s + 1] * dim - key_at
            widen_rows(stored, key_at, number, dim, turn_cos, turn_sin, row * half, rotates, keys_at)
            for v in range(vectors):
                by = 4 * v * LANES
                next_key = key_at + ahead
                dot_rows(
                    keys_at,
                    number,
                    dim,
                    turned_at + by * dim,
                    logits_at,
                    stored,
                    next_key,
                    next_key + to_values,
                )
                for lane in range(LANES):
                    limits[lane] = min(max(steps.limit[s, v * LANES + lane] - row, 0), number)
                some = min(LANES, num_queries - v * LANES)
                if tile_peaks(logits_at, limits_at, _LOG2_E, peaks_at + by, highest_at):
                    _raise_peaks(v * LANES, some, highest, peaks, totals, sums)
                tile_weights(logits_at, limits_at, _LOG2_E, peaks_at + by, totals_at + by)
                add_values(stored, key_at + to_values, number, dim, logits_at, some, sums_at + by * dim)
    for r in range(num_rows):
        for m in range(group):
            q = m * num_rows + r
            for d in range(dim):
                out[r, m, d] = sums[q, d]
        _share(r, num_rows, peaks, totals, out[r], lse[r])
    room[0] = 0  # until here it is held


@njit(**INLINE)
def _raise_peaks(first: Any, some: Any, highest: Any, peaks: Any, totals: Any, sums: Any) -> None:
    """Takes higher peaks over for queries of one vector, and scales what was summed below the former ones."""
    for lane in range(some):
        q = first + lane
        if highest[lane] > peaks[q]:
            shrink = exp32((peaks[q] - highest[lane]) * _LN2)
            totals[q] *= shrink
            for d in range(sums.shape[1]):
                sums[q, d] *= shrink
            peaks[q] = highest[lane]


@njit(**SERIAL)
def _share(row: Any, num_rows: Any, peaks: Any, totals: Any, out: Any, lse: Any) -> None:
    """`share_sums` of one position."""
    own_peak, own_total = np.empty(len(out), np.float32), np.empty(len(out), np.float32)
    for m in range(len(out)):
        own_peak[m], own_total[m] = peaks[m * num_rows + row], totals[m * num_rows + row]
    share_sums(own_peak, own_total, out, lse)
