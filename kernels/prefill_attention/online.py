"""The compiled part of dense attention on a CPU: an online softmax over blocks of keys (FlashAttention), in fp32.

Threads take pieces of work from a counter: first panels of keys and values are packed, then blocks of queries of
one head attend them. A row's result does not depend on who computes it, nor on the other rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from moorage.kernels.compiling import njit
from moorage.kernels.counter import take
from moorage.kernels.numba_flags import INLINE, SERIAL
from moorage.kernels.prefill_attention.packing import PANEL, pack_keys, pack_values
from moorage.kernels.prefill_attention.tiles import ROWS, WIDTHS, product_1, product_2, product_4
from moorage.kernels.simd_lanes import LANES
from moorage.kernels.simd_softmax import row_peak, row_weights
from moorage.kernels.vector_math import exp32

QUERIES = 8 * ROWS
"""Queries of a block."""
KEYS = 4 * PANEL
"""Keys of a block: logits of one block of queries and keys lie in the caches next to the core."""
_WIDEST = WIDTHS[0]
_LN2 = np.float32(0.6931471805599453)
_NONE = np.float32(-np.inf)


class Problem(NamedTuple):
    """Arrays in one piece each, with the strides of heads and rows in elements."""

    q: Any
    """Words."""
    q_strides: Any
    k: Any
    """Words."""
    k_strides: Any
    v: Any
    """Elements, float32 or the bits of bfloat16."""
    v_strides: Any
    num_keys: Any
    """Keys that any query sees are among the first of this many."""
    band: Any
    q_start: Any
    k_start: Any
    factors: Any
    """(inside, outside, factor): a product x weighs 2**(factor * y), where y is x or, unless `inside` is 0,
    outside * tanh(inside * x)."""
    keys: Any
    """[Hkv, panels, words, PANEL]"""
    values: Any
    """[Hkv, panels, PANEL / n, columns, n], see `pack_values`."""
    out: Any
    """[T, Hq, D]"""
    lse: Any
    """[Hq, T]"""
    continues: Any
    """Whether out and lse hold the result of other keys, which is carried on."""


@njit(**SERIAL)
def pack_share(counter: Any, p: Any) -> None:
    """Packs panels until none is left."""
    heads, panels, dim = p.keys.shape[0], p.keys.shape[1], p.out.shape[2]
    item = take(counter)
    while item < heads * panels:
        head, panel = divmod(item, panels)
        first = panel * PANEL
        count = min(np.int64(PANEL), p.num_keys - first)
        at = head * p.k_strides[0] + first * p.k_strides[1]
        pack_keys(p.k, at, p.k_strides[1], count, p.keys[head, panel])
        at = head * p.v_strides[0] + first * p.v_strides[1]
        pack_values(p.v, at, p.v_strides[1], count, dim, p.values[head, panel])
        item = take(counter)


@njit(**INLINE)
def _multiply(
    like: Any, a: Any, a_stride: Any, b: Any, count: Any, out: Any, vectors: Any, rows: Any, fresh: Any
) -> None:  # fmt: skip
    """out [rows, vectors * LANES] of all columns of b [count, vectors * LANES] words, in tiles."""
    stride, column = vectors * LANES * 4, 0
    while column < vectors:
        left = vectors - column
        for i in range(0, rows, ROWS):
            from_a, into = a + i * a_stride, out + i * stride + column * LANES * 4
            at = b + column * LANES * 4
            if _WIDEST >= 4 and left >= 4:
                product_4(like, from_a, a_stride, at, stride, count, into, stride, fresh)
            elif _WIDEST >= 2 and left >= 2:
                product_2(like, from_a, a_stride, at, stride, count, into, stride, fresh)
            else:
                product_1(like, from_a, a_stride, at, stride, count, into, stride, fresh)
        if _WIDEST >= 4 and left >= 4:
            column += 4
        elif _WIDEST >= 2 and left >= 2:
            column += 2
        else:
            column += 1


@njit(**SERIAL)
def _hide(logits: Any, count: Any, first: Any, position: Any, band: Any) -> None:
    """Sets to -inf what the query at `position` does not see of `count` keys from `first` on, and what is behind."""
    begin = min(count, max(np.int64(0), position - band[1] + 1 - first))
    end = max(begin, min(count, position - band[0] + 1 - first))
    logits[:begin] = _NONE
    logits[end:] = _NONE


@njit(**SERIAL)
def _cap(logits: Any, inside: Any, outside: Any) -> None:
    """Replaces each logit by outside * tanh(inside * logit)."""
    one, two = np.float32(1), np.float32(2)
    for c in range(len(logits)):
        logits[c] = outside * (one - two / (exp32(two * inside * logits[c]) + one))


@njit(**SERIAL)
def attend_share(like: Any, counter: Any, p: Any) -> None:
    """Attends with blocks of queries until none is left."""
    num_rows, num_heads = p.out.shape[0], p.out.shape[1]
    group, words, columns = num_heads // len(p.keys), p.keys.shape[2], p.values.shape[3]
    blocks = -(-num_rows // QUERIES)
    queries, logits = np.zeros((QUERIES, words), np.uint32), np.empty((QUERIES, KEYS), np.float32)
    weights, sums = np.empty((QUERIES, KEYS), p.v.dtype), np.empty((QUERIES, columns), np.float32)
    peaks, totals = np.empty(QUERIES, np.float32), np.empty(QUERIES, np.float32)
    item = take(counter)
    while item < num_heads * blocks:
        # The last queries see most keys: whoever takes them should begin first.
        turn, head = divmod(item, num_heads)
        first = (blocks - 1 - turn) * QUERIES
        count = min(np.int64(QUERIES), num_rows - first)
        _begin(p, head, first, count, queries, sums, peaks, totals)
        _attend(like, p, head // group, first, count, queries, logits, weights, sums, peaks, totals)
        _end(p, head, first, count, sums, peaks, totals)
        item = take(counter)


@njit(**SERIAL)
def _begin(
    p: Any, head: Any, first: Any, count: Any, queries: Any, sums: Any, peaks: Any, totals: Any
) -> None:  # fmt: skip
    dim = p.out.shape[2]
    for i in range(count):
        at = head * p.q_strides[0] + (first + i) * p.q_strides[1]
        for d in range(queries.shape[1]):
            queries[i, d] = p.q[at + d]
        peaks[i], totals[i] = _NONE, np.float32(0)
        if p.continues and p.lse[head, first + i] != _NONE:
            peaks[i], totals[i] = p.lse[head, first + i] / _LN2, np.float32(1)
        for d in range(dim):
            sums[i, d] = p.out[first + i, head, d] if totals[i] > 0 else np.float32(0)
        sums[i, dim:] = 0


@njit(**SERIAL)
def _end(p: Any, head: Any, first: Any, count: Any, sums: Any, peaks: Any, totals: Any) -> None:
    for i in range(count):
        sees = totals[i] != 0
        share = np.float32(1) / totals[i] if sees else np.float32(0)
        out = p.out[first + i, head]
        for d in range(len(out)):
            out[d] = sums[i, d] * share
        p.lse[head, first + i] = (peaks[i] + np.log2(totals[i])) * _LN2 if sees else _NONE


@njit(**SERIAL)
def _attend(
    like: Any, p: Any, kv_head: Any, first: Any, count: Any, queries: Any, logits: Any, weights: Any, sums: Any,
    peaks: Any, totals: Any,
) -> None:  # fmt: skip
    """Rows [first, first + count) over the keys that any of them sees."""
    words, columns, beside = queries.shape[1], p.values.shape[3], p.values.shape[4]
    position = p.q_start + first - p.k_start
    low = max(np.int64(0), position - p.band[1] + 1) // PANEL * PANEL
    high = min(np.int64(p.num_keys), position + count - p.band[0])
    rows = -(-count // ROWS) * ROWS
    inside, outside, factor = p.factors
    key_panels, value_panels = p.keys[kv_head], p.values[kv_head]
    for begin in range(low, high, KEYS):
        num_keys = min(np.int64(KEYS), high - begin)
        panels = -(-num_keys // PANEL)
        width = panels * PANEL
        into, stride = logits.ctypes.data, KEYS * 4
        for panel in range(panels):
            b = key_panels[begin // PANEL + panel].ctypes.data
            for i in range(0, rows, ROWS):
                a = queries[i].ctypes.data
                at = into + i * stride + panel * PANEL * 4
                if _WIDEST == 4:
                    product_4(like, a, words * 4, b, PANEL * 4, words, at, stride, True)
                else:
                    for part in range(4):
                        there = b + part * LANES * 4
                        product_1(
                            like, a, words * 4, there, PANEL * 4, words, at + part * LANES * 4, stride, True
                        )
        sees_all = (
            position - (begin + width - 1) >= p.band[0]
            and position + count - 1 - begin < p.band[1]
            and num_keys == width
        )
        for i in range(count):
            if inside != 0:
                _cap(logits[i, :width], inside, outside)
            if not sees_all:
                _hide(logits[i, :width], num_keys, begin, position + i, p.band)
            row = logits[i].ctypes.data
            peak = max(peaks[i], row_peak(row, width // LANES) * factor)
            if peak > peaks[i]:
                shrink = exp32((peaks[i] - peak) * _LN2)
                totals[i] *= shrink
                for d in range(columns):
                    sums[i, d] *= shrink
                peaks[i] = peak
            base = peaks[i] if peaks[i] != _NONE else np.float32(0)
            totals[i] += row_weights(like, row, width // LANES, factor, base, weights[i].ctypes.data)
        steps = -(-num_keys // beside)
        b = value_panels[begin // PANEL].ctypes.data
        _multiply(
            like, weights.ctypes.data, KEYS * 4 // beside, b, steps, sums.ctypes.data, columns // LANES, rows,
            False,
        )  # fmt: skip
