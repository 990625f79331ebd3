"""Estimated logits of the keys of whole blocks, a tile of blocks at a time."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from moorage.kernels.key_select.lanes import LOGITS_16, LOGITS_64, copy_float, prefetch_at, store_word
from moorage.kernels.key_select.rows import row_logits
from moorage.kernels.numba_flags import INLINE, SERIAL
from moorage.kernels.simd import LINE_BYTES, TILE

_64_1, _64_2, _64_3, _64_4 = LOGITS_64
_16_1, _16_2, _16_3, _16_4 = LOGITS_16
AHEAD = 4
"""Blocks whose means and codes are asked of the memory before they are needed."""
_NO, _NONE = np.bool_(False), np.int64(0)


@njit(**INLINE)
def _block_logits(
    group: Any, planes: Any, num_planes: Any, block: Any, scales: Any, tables: Any, terms: Any, out: Any, step: Any
) -> None:  # fmt: skip
    """`LOGITS_64` or `LOGITS_16` for any number of queries."""
    for done in range(0, group, 4):
        left = group - done
        table, term, into = tables + done * num_planes * 32, terms + 12 * done, out + done * step
        if block % 64 == 0:
            if left >= 4:
                _64_4(planes, num_planes, block, scales, table, term, into, step)
            elif left == 3:
                _64_3(planes, num_planes, block, scales, table, term, into, step)
            elif left == 2:
                _64_2(planes, num_planes, block, scales, table, term, into, step)
            else:
                _64_1(planes, num_planes, block, scales, table, term, into, step)
        elif left >= 4:
            _16_4(planes, num_planes, block, scales, table, term, into, step)
        elif left == 3:
            _16_3(planes, num_planes, block, scales, table, term, into, step)
        elif left == 2:
            _16_2(planes, num_planes, block, scales, table, term, into, step)
        else:
            _16_1(planes, num_planes, block, scales, table, term, into, step)


class Workplace(NamedTuple):
    """Where estimates of G queries with D channels are made, by addresses: numbers cost nothing to hand on."""

    group: Any
    dim: Any
    terms: Any
    """[G, 3] float32 of `make_tables`; terms[:, 2] is overwritten."""
    rows: Any
    """[TILE] int64, overwritten."""
    products: Any
    product_bytes: Any
    """[G, n + TILE] float32, rows of so many bytes: the logits of the means."""
    logits: Any
    logit_bytes: Any
    """[G, n] float32, rows of so many bytes: the estimated logits."""


class Desk(NamedTuple):
    """The arrays of a Workplace. Who uses the place must hold them: an address alone does not keep an array."""

    terms: Any
    rows: Any
    products: Any
    logits: Any
    at: Any
    """The Workplace."""


@njit(**SERIAL)
def make_desk(group: Any, dim: Any, blocks: Any, block: Any) -> Any:
    """A Desk for `group` queries of `dim` channels, and as many as `blocks` blocks of `block` keys at once."""
    terms, rows = np.empty((group, 3), np.float32), np.empty(TILE, np.int64)
    products, logits = (
        np.empty((group, blocks + TILE), np.float32),
        np.empty((group, blocks * block), np.float32),
    )
    at = Workplace(
        group, dim, terms.ctypes.data, rows.ctypes.data, products.ctypes.data, 4 * products.shape[1],
        logits.ctypes.data, 4 * logits.shape[1],
    )  # fmt: skip
    return Desk(terms, rows, products, logits, at)


@njit(**SERIAL)
def estimate(
    like: Any,
    means: Any,
    codes: Any,
    low: Any,
    high: Any,
    first: Any,
    block: Any,
    queries: Any,
    tables: Any,
    at: Any,
) -> None:
    """Estimated logits of queries with the keys of the blocks [low, high) of lists, at the Workplace `at`.

    `means` and `codes` list the addresses of the blocks' means, of the type of `like`, and codes. The queries [G, D]
    lie at an address, as do their tables, see `make_tables`. Block `first` is the first of the results.
    """
    group, dim, num_planes = at.group, at.dim, at.dim // 8
    code_bytes, mean_bytes = block * (num_planes + 2) + 2 * dim, dim * like.itemsize
    for tile in range(low, high, TILE):
        count = min(TILE, high - tile)
        for r in range(TILE):
            store_word(at.rows + 8 * r, means[tile + min(r, count - 1)])
        into = at.products + 4 * (tile - first)
        row_logits(like, group, at.rows, at.rows, at.rows, dim, _NONE, _NO, queries, into, at.product_bytes)
        for r in range(count):
            ahead = min(tile + r + AHEAD, len(codes) - 1)
            for byte in range(0, code_bytes, LINE_BYTES):
                prefetch_at(codes[ahead] + byte)
            for byte in range(0, mean_bytes, LINE_BYTES):
                prefetch_at(means[min(ahead + TILE, len(means) - 1)] + byte)
            for g in range(group):
                copy_float(at.terms + 12 * g + 8, into + g * at.product_bytes + 4 * r)
            planes, target = codes[tile + r], at.logits + 4 * (tile + r - first) * block
            _block_logits(
                group,
                planes,
                num_planes,
                block,
                planes + num_planes * block,
                tables,
                at.terms,
                target,
                at.logit_bytes,
            )
