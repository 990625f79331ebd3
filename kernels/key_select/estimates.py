"""Values of the keys of whole blocks, a tile of blocks at a time."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from moorage.kernels.compiling import njit
from moorage.kernels.key_select.lanes import (
    HALF_WIDE,
    TABLE_BYTES,
    VALUES_16,
    VALUES_HALF_WIDE,
    VALUES_WIDE,
    WIDE,
    load_word,
    prefetch_at,
    store_word,
)
from moorage.kernels.key_select.rows import row_logits
from moorage.kernels.numba_flags import INLINE, SERIAL
from moorage.kernels.simd import LINE_BYTES, TILE

_WIDE_1, _WIDE_2, _WIDE_3, _WIDE_4 = VALUES_WIDE
_HALF_1, _HALF_2, _HALF_3, _HALF_4 = VALUES_HALF_WIDE
_16_1, _16_2, _16_3, _16_4 = VALUES_16
AHEAD = 8
"""Blocks whose means and codes are asked of the memory before they are needed."""
_NO, _NONE = np.bool_(False), np.int64(0)


class Queries(NamedTuple):
    """The G queries of a KV head with D channels as they meet codes, by addresses: numbers are cheap arguments."""

    group: Any
    dim: Any
    rows: Any
    """[G, D] float32."""
    tables: Any
    terms: Any
    """Of `make_tables`."""
    less: Any
    """[G] float32: what a value is relative to."""


@njit(**INLINE)
def of_head(first: Any, head: Any) -> Any:
    """The Queries of a KV head, given those of KV head 0, behind which they lie."""
    group, dim = first.group, first.dim
    number = head * group
    return Queries(
        group, dim, first.rows + 4 * number * dim, first.tables + number * (dim // 8) * 2 * TABLE_BYTES,
        first.terms + 8 * number, first.less + 4 * number,
    )  # fmt: skip


class Desk(NamedTuple):
    """Addresses of memory for the logits of the means of some blocks."""

    places: Any
    """[TILE] int64, overwritten."""
    products: Any
    step: Any
    """[G, n + LANES] float32, rows of so many bytes."""


@njit(**INLINE)
def _block_values(
    queries: Any, planes: Any, num_planes: Any, block: Any, means: Any, means_step: Any, out: Any
) -> None:
    """`VALUES_WIDE`, `VALUES_HALF_WIDE` or `VALUES_16` for any number of queries."""
    for done in range(0, queries.group, 4):
        left, joins, mean, less = (
            queries.group - done,
            done > 0,
            means + done * means_step,
            queries.less + 4 * done,
        )
        table, term = queries.tables + done * num_planes * 2 * TABLE_BYTES, queries.terms + 8 * done
        if block % WIDE == 0:
            if left >= 4:
                _WIDE_4(planes, num_planes, block, table, term, mean, means_step, less, joins, out)
            elif left == 3:
                _WIDE_3(planes, num_planes, block, table, term, mean, means_step, less, joins, out)
            elif left == 2:
                _WIDE_2(planes, num_planes, block, table, term, mean, means_step, less, joins, out)
            else:
                _WIDE_1(planes, num_planes, block, table, term, mean, means_step, less, joins, out)
        elif block % HALF_WIDE == 0:
            if left >= 4:
                _HALF_4(planes, num_planes, block, table, term, mean, means_step, less, joins, out)
            elif left == 3:
                _HALF_3(planes, num_planes, block, table, term, mean, means_step, less, joins, out)
            elif left == 2:
                _HALF_2(planes, num_planes, block, table, term, mean, means_step, less, joins, out)
            else:
                _HALF_1(planes, num_planes, block, table, term, mean, means_step, less, joins, out)
        elif left >= 4:
            _16_4(planes, num_planes, block, table, term, mean, means_step, less, joins, out)
        elif left == 3:
            _16_3(planes, num_planes, block, table, term, mean, means_step, less, joins, out)
        elif left == 2:
            _16_2(planes, num_planes, block, table, term, mean, means_step, less, joins, out)
        else:
            _16_1(planes, num_planes, block, table, term, mean, means_step, less, joins, out)


@njit(**SERIAL)
def estimate(
    like: Any, means: Any, codes: Any, low: Any, high: Any, last: Any, block: Any, queries: Any, desk: Any, out: Any
) -> None:  # fmt: skip
    """Values of the keys of the blocks [low, high) of lists, float32 at the address `out`, by `queries`.

    At `means` and `codes` are listed the addresses of the blocks' means, of the type of `like`, and codes. The logits
    of the means are left in the desk's products. Blocks that follow, up to the `last` in the lists, are asked of the
    memory.
    """
    group, dim, num_planes = queries.group, queries.dim, queries.dim // 8
    code_bytes, mean_bytes = block * (num_planes + 2) + 2 * dim, dim * like.itemsize
    for tile in range(low, high, TILE):
        count = min(TILE, high - tile)
        for r in range(TILE):
            store_word(desk.places + 8 * r, load_word(means + 8 * (tile + min(r, count - 1))))
        into = desk.products + 4 * (tile - low)
        row_logits(
            like, group, desk.places, desk.places, desk.places, dim, _NONE, _NO, queries.rows, into, desk.step
        )
        for r in range(count):
            ahead = min(tile + r + AHEAD, last)
            coming = load_word(codes + 8 * ahead)
            for byte in range(0, code_bytes, LINE_BYTES):
                prefetch_at(coming + byte)
            coming = load_word(means + 8 * min(ahead + TILE, last))
            for byte in range(0, mean_bytes, LINE_BYTES):
                prefetch_at(coming + byte)
            planes, target = load_word(codes + 8 * (tile + r)), out + 4 * (tile + r - low) * block
            _block_values(queries, planes, num_planes, block, into + 4 * r, desk.step, target)
