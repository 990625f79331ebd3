"""Logits of a tile of rows with the queries of a group, by the widest registers that the head's size allows."""

from __future__ import annotations

from typing import Any

import numpy as np

from moorage.kernels.compiling import njit
from moorage.kernels.half import widen
from moorage.kernels.numba_flags import INLINE
from moorage.kernels.simd import LANES, TILE, dots_1, dots_2, dots_4
from moorage.kernels.simd_group import WIDE_LANES, group_dots_1, group_dots_2, group_dots_3, group_dots_4
from moorage.kernels.simd_heads import (
    dots_64_1,
    dots_64_2,
    dots_64_3,
    dots_64_4,
    dots_128_1,
    dots_128_2,
    dots_128_3,
    dots_128_4,
)
from moorage.kernels.simd_rows import rotate_rows

ROWS = 32
"""Rows of a tile: its values stay in the L1 cache while all queries of the group read them."""


@njit(**INLINE)
def rotate_into_tile(
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
    stored: Any, at: Any, count: Any, cos: Any, sin: Any, turn_at: Any, half: Any, rotates: Any,
    queries: Any, group: Any, dim: Any, out: Any,
) -> None:  # fmt: skip
    """`_logits` of whole wide vectors, whose rows are rotated in registers where `rotates`."""
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
def _logits_of_64(
    stored: Any, at: Any, step: Any, ahead: Any, tiles: Any, cos: Any, sin: Any, turn_at: Any, turn_step: Any,
    rotates: Any, queries: Any, group: Any, out: Any, into: Any,
) -> None:  # fmt: skip
    """Tiles of rows of 64 channels; see `dots_64_1`."""
    m = 0
    while m < group:
        left, q, o = group - m, m * 64, m * ROWS + into
        if left >= 4:
            dots_64_4(
                stored,
                at,
                step,
                ahead,
                tiles,
                cos,
                sin,
                turn_at,
                turn_step,
                rotates,
                queries,
                q,
                out,
                o,
                ROWS,
            )
        elif left == 3:
            dots_64_3(
                stored,
                at,
                step,
                ahead,
                tiles,
                cos,
                sin,
                turn_at,
                turn_step,
                rotates,
                queries,
                q,
                out,
                o,
                ROWS,
            )
        elif left == 2:
            dots_64_2(
                stored,
                at,
                step,
                ahead,
                tiles,
                cos,
                sin,
                turn_at,
                turn_step,
                rotates,
                queries,
                q,
                out,
                o,
                ROWS,
            )
        else:
            dots_64_1(
                stored,
                at,
                step,
                ahead,
                tiles,
                cos,
                sin,
                turn_at,
                turn_step,
                rotates,
                queries,
                q,
                out,
                o,
                ROWS,
            )
        m += 4


@njit(**INLINE)
def _logits_of_128(
    stored: Any, at: Any, step: Any, ahead: Any, tiles: Any, cos: Any, sin: Any, turn_at: Any, turn_step: Any,
    rotates: Any, queries: Any, group: Any, out: Any, into: Any,
) -> None:  # fmt: skip
    """Tiles of rows of 128 channels; see `dots_64_1`."""
    m = 0
    while m < group:
        left, q, o = group - m, m * 128, m * ROWS + into
        if left >= 4:
            dots_128_4(
                stored,
                at,
                step,
                ahead,
                tiles,
                cos,
                sin,
                turn_at,
                turn_step,
                rotates,
                queries,
                q,
                out,
                o,
                ROWS,
            )
        elif left == 3:
            dots_128_3(
                stored,
                at,
                step,
                ahead,
                tiles,
                cos,
                sin,
                turn_at,
                turn_step,
                rotates,
                queries,
                q,
                out,
                o,
                ROWS,
            )
        elif left == 2:
            dots_128_2(
                stored,
                at,
                step,
                ahead,
                tiles,
                cos,
                sin,
                turn_at,
                turn_step,
                rotates,
                queries,
                q,
                out,
                o,
                ROWS,
            )
        else:
            dots_128_1(
                stored,
                at,
                step,
                ahead,
                tiles,
                cos,
                sin,
                turn_at,
                turn_step,
                rotates,
                queries,
                q,
                out,
                o,
                ROWS,
            )
        m += 4


@njit(**INLINE)
def _fixed_logits(
    stored: Any, at: Any, count: Any, ahead: Any, cos: Any, sin: Any, turn_at: Any, half: Any, rotates: Any,
    queries: Any, group: Any, dim: Any, out: Any,
) -> None:  # fmt: skip
    """`_wide_logits` where `asks_ahead`.

    The last tile begins early enough to end with the last row. Where there are fewer rows than a tile has, a tile is
    one row again and again.
    """
    t, tiles, step, turn_step = np.int64(0), count // TILE, dim, half
    if tiles == 0:
        step, turn_step = np.int64(0), np.int64(0)
    while t < count:
        number = max(tiles, 1)
        row, turn = at + t * dim, turn_at + t * half
        if dim == 64:
            _logits_of_64(
                stored, row, step, ahead, number, cos, sin, turn, turn_step, rotates, queries, group, out, t
            )  # fmt: skip
        else:
            _logits_of_128(
                stored, row, step, ahead, number, cos, sin, turn, turn_step, rotates, queries, group, out, t
            )  # fmt: skip
        if tiles == 0:
            t += 1
        elif t + tiles * TILE < count:
            t, tiles = count - TILE, np.int64(1)
        else:
            t = count


@njit(**INLINE)
def asks_ahead(dim: Any, half: Any) -> Any:
    """Whether rows are of 64 or 128 channels, of which all or none are rotated."""
    return (dim == 64 or dim == 128) and (2 * half == dim or half == 0)


@njit(**INLINE)
def tile_logits(
    stored: Any, at: Any, count: Any, ahead: Any, cos: Any, sin: Any, turn_at: Any, half: Any, rotates: Any,
    queries: Any, group: Any, dim: Any, keys: Any, out: Any,
) -> None:  # fmt: skip
    """out[m * ROWS + t] = query m times row t of `count` stored rows from `at` on.

    Where `rotates`, row t is rotated by `half` elements of cos and sin from turn_at + t * half on. `keys` is room for
    ROWS rows. What lies `ahead` elements after each row is asked for, where `asks_ahead`.
    """
    turns = rotates and half > 0
    if asks_ahead(dim, half):
        _fixed_logits(stored, at, count, ahead, cos, sin, turn_at, half, turns, queries, group, dim, out)
    elif dim % WIDE_LANES == 0 and half % WIDE_LANES == 0:
        _wide_logits(stored, at, count, cos, sin, turn_at, half, turns, queries, group, dim, out)
    elif turns:
        rotate_into_tile(stored, at, count, dim, cos, sin, turn_at, half, half, keys)
        _logits(keys, np.int64(0), count, queries, group, dim, out)
    else:
        _logits(stored, at, count, queries, group, dim, out)
