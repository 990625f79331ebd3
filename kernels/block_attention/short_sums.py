"""Weights of a tile of packed rows, and what the outliers of its keys and values add, see `short_desk.py`."""

from __future__ import annotations

from typing import Any

import numpy as np

from moorage.kernels.block_attention.head import _LN2, _LOG2_E, capped
from moorage.kernels.block_attention.short_desk import CHUNK, scale_sums
from moorage.kernels.block_attention.short_rows import (
    TILE_ROWS,
    add_columns,
    add_two_scaled,
    add_weighted,
    clear_row,
    end_row,
    row_shares_32,
    row_shares_64,
    scale_row,
)
from moorage.kernels.compiling import njit
from moorage.kernels.key_select.lanes import load_float, store_float
from moorage.kernels.numba_flags import INLINE, SERIAL
from moorage.kernels.packed_blocks.short_operands import MOST_KEY
from moorage.kernels.packed_blocks.short_outliers import copy_short, load_offset
from moorage.kernels.packed_blocks.short_units import (
    UNIT,
)
from moorage.kernels.packed_blocks.unpack_plain import load_half, load_short
from moorage.kernels.simd_softmax import row_peak
from moorage.kernels.vector_math import exp32

_ZERO = np.float32(0)


@njit(**INLINE)
def put_key_outliers(desk: Any, layout: Any, keys: Any, rows: Any, first: Any) -> Any:
    """Puts the outliers from number `first` on in their places in the tile; `rows` rows of the entry lie before it.

    Returns how many outliers lie before the rows that follow.
    """
    start, last = 2 * rows * layout.head_dim, keys.num_outliers
    limit = start + 2 * TILE_ROWS * layout.head_dim
    while first < last:
        at = load_offset(desk.offsets + 4 * first)
        if at >= limit:
            break
        copy_short(desk.shorts + 2 * first, desk.tile + at - start)
        first += 1
    return first


@njit(**SERIAL)
def correct_logits(
    desk: Any, layout: Any, keys: Any, row: Any, first: Any, last: Any, cos: Any, sin: Any, rotates: Any,
    group: Any,
) -> None:  # fmt: skip
    """Adds to logits what outliers [first, last) are beyond the largest int16 of a key, which the tile has.

    cos, sin: addresses of float32 [B, D / 2].
    """
    dim, exact = np.int64(layout.head_dim), keys.places + 2 * layout.capacity
    low, half, shift = row * dim, dim // 2, np.int64(7 if dim == UNIT else 6)
    clear_row(desk.corrections, -(-group // CHUNK) * CHUNK * TILE_ROWS // 16)
    for i in range(first, last):
        place = np.int64(load_short(keys.places + 2 * i))
        t, d = (place - low) >> shift, place & (dim - 1)
        number = load_half(exact + 2 * i)
        most = np.float32(MOST_KEY) / load_float(desk.shares + 4 * (d & (half - 1)))
        if abs(number) <= most:
            continue
        more = number - most if number > 0 else number + most
        by, by_other = more, _ZERO
        if rotates:
            at = 4 * ((row + t) * half + (d & (half - 1)))
            by, by_other = more * load_float(cos + at), more * load_float(sin + at)
            if d >= half:
                by_other = -by_other
        for m in range(0, group, CHUNK):
            columns = desk.columns + 4 * m * dim
            into = desk.corrections + 4 * (m * TILE_ROWS + t * CHUNK)
            add_two_scaled(columns + 16 * d, by, columns + 16 * (d ^ half), by_other, into)
    for m in range(0, group, CHUNK):
        add_columns(desk.corrections + 4 * m * TILE_ROWS, desk.logits + 4 * m * TILE_ROWS)


@njit(**INLINE)
def weigh_logits(
    desk: Any,
    row: Any,
    count: Any,
    levels: Any,
    softcap: Any,
    sums: Any,
    dim: Any,
    group: Any,
    peaks: Any,
    totals: Any,
    has_outliers: Any,
) -> None:
    """Turns `count` logits of each query into weights; scales what was summed where its peak rises.

    sums, peaks, totals: addresses of float32 [G, D], [G] and [G], of what was summed elsewhere as well.
    """
    vectors = np.int64(TILE_ROWS // 16 if count > TILE_ROWS // 2 else TILE_ROWS // 32)
    for m in range(group):
        place, found = desk.logits + 4 * m * TILE_ROWS, desk.found + 16 * m
        if count < 16 * vectors:
            end_row(place, count, vectors)
        if softcap > 0:
            for at in range(place, place + 4 * count, 4):
                store_float(at, capped(load_float(at), softcap))
        highest, peak = row_peak(place, vectors) * _LOG2_E, load_float(peaks + 4 * m)
        if highest > peak:
            shrink = exp32((peak - highest) * _LN2)
            store_float(totals + 4 * m, load_float(totals + 4 * m) * shrink)
            scale_row(sums + 4 * m * dim, dim // 16, shrink)
            scale_sums(desk, m, dim, shrink, has_outliers)
            store_float(peaks + 4 * m, highest)
            peak = highest
        scales, zeros, out = desk.scales + 4 * row, desk.zeros + 4 * row, desk.weights + 2 * m * TILE_ROWS
        if count > TILE_ROWS // 2:
            row_shares_64(place, _LOG2_E, peak, scales, zeros, levels.middle, levels.span, out, found)
        else:
            row_shares_32(place, _LOG2_E, peak, scales, zeros, levels.middle, levels.span, out, found)
        for held, at in ((totals + 4 * m, found), (desk.middles + 4 * m, found + 4)):
            store_float(held, load_float(held) + load_float(at))


@njit(**INLINE)
def add_value_outliers(
    desk: Any, layout: Any, values: Any, row: Any, count: Any, first: Any, group: Any
) -> Any:
    """Adds the weighted outliers of values [row, row + count) less what their codes say; returns as
    `put_key_outliers`."""
    dim, exact = np.int64(layout.head_dim), values.places + 2 * layout.capacity
    low, high, shift = row * dim, (row + count) * dim, np.int64(7 if dim == UNIT else 6)
    lowest = load_float(values.levels)
    while first < values.num_outliers:
        place = np.int64(load_short(values.places + 2 * first))
        if place >= high:
            break
        t, d = (place - low) >> shift, place & (dim - 1)
        at = 4 * (row + t)
        code = load_float(desk.zeros + at) + load_float(desk.scales + at) * lowest
        more = load_half(exact + 2 * first) - code
        for m in range(0, group, CHUNK):
            into = desk.extras + 4 * (m * dim + d * CHUNK)
            add_weighted(desk.logits + 4 * (m * TILE_ROWS + t), more, into)
        first += 1
    return first
