"""Anchors in four bits: a coarse score for every block at a quarter of the memory that exact ones read.

The element at place v of a block's anchors, all heads and vectors in their order, is stored as the whole number c for
which low[v] + c * step[v] is nearest to it (scalar quantisation, as KIVI quantises keys by channel). Two neighbours
share a byte, the first in its low half.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from moorage.kernels.block_score.code_dots import CODE_BYTES, code_dots
from moorage.kernels.checks import FLOAT32, STORAGE, UINT8, check_array, check_ids, check_multiple
from moorage.kernels.half import Storage, widen
from moorage.kernels.numba_flags import SERIAL
from moorage.kernels.simd import LINE_BYTES, TILE, prefetch
from moorage.kernels.simd_lanes import host_has

Codes = NDArray[np.uint8]
Float32 = NDArray[np.float32]

LEVELS = 15
"""Steps between the lowest and the highest code."""
CHUNK = 512
"""Blocks that all rows of queries meet while their codes are in the L2 cache; a multiple of the tile."""
PREFETCH_BYTES = 16 * 1024
LARGEST_WEIGHT = 127

_dots = code_dots(host_has("avx2"))


def extend_range(
    anchors_layer: Storage, pages: NDArray[np.int32], slack: Float32, low: Float32, high: Float32
) -> bool:
    """Widens low, high [V] until no element of `pages` lies more than `slack` [V] outside; whether it did.

    anchors_layer [P, Hkv, A, D], V = Hkv * A * D.
    """
    size = _check_anchors(anchors_layer, pages)
    for name, array in (("slack", slack), ("low", low), ("high", high)):
        check_array(name, array, FLOAT32, (size,))
    return bool(_extend_range(anchors_layer.reshape(-1, size), pages, slack, low, high))


def encode_anchors(
    anchors_layer: Storage, pages: NDArray[np.int32], low: Float32, step: Float32, codes_layer: Codes
) -> None:
    """Writes the codes of `pages` into codes_layer [P, V / 2]; elements out of range get the nearest code."""
    size = _check_anchors(anchors_layer, pages)
    for name, array in (("low", low), ("step", step)):
        check_array(name, array, FLOAT32, (size,))
    check_array("codes_layer", codes_layer, UINT8, (len(anchors_layer), size // 2))
    _encode(anchors_layer.reshape(-1, size), pages, low, step, codes_layer)


def _check_anchors(anchors_layer: Storage, pages: NDArray[np.int32]) -> int:
    check_array("anchors_layer", anchors_layer, STORAGE, (None, None, None, None))
    check_ids("pages", pages, len(anchors_layer))
    size = int(np.prod(anchors_layer.shape[1:]))
    check_multiple("elements of a block's anchors", size, 2 * CODE_BYTES)
    return size


@njit(**SERIAL)
def _extend_range(anchors: Any, pages: Any, slack: Any, low: Any, high: Any) -> Any:
    found_low, found_high = low.copy(), high.copy()
    for page in pages:
        row = anchors[page]
        for v in range(len(low)):
            value = widen(row[v])
            found_low[v], found_high[v] = min(found_low[v], value), max(found_high[v], value)
    outside = False
    for v in range(len(low)):
        if found_low[v] < low[v] - slack[v] or found_high[v] > high[v] + slack[v]:
            low[v], high[v], outside = found_low[v], found_high[v], True
    return outside


@njit(**SERIAL)
def _encode(anchors: Any, pages: Any, low: Any, step: Any, codes: Any) -> None:
    inverse = np.empty(len(step), np.float32)
    for v in range(len(step)):
        inverse[v] = 1 / step[v] if step[v] > 0 else np.float32(0)
    half = np.float32(0.5)
    for page in pages:
        row, into = anchors[page], codes[page]
        for i in range(len(into)):
            first = (widen(row[2 * i]) - low[2 * i]) * inverse[2 * i] + half
            second = (widen(row[2 * i + 1]) - low[2 * i + 1]) * inverse[2 * i + 1] + half
            first = min(max(first, np.float32(0)), np.float32(LEVELS))
            second = min(max(second, np.float32(0)), np.float32(LEVELS))
            into[i] = np.uint8(np.uint8(first) | np.uint8(np.uint8(second) << np.uint8(4)))


@njit(**SERIAL)
def code_weights(packed: Any, step: Any) -> Any:
    """(even, odd), int8 [S, R, V / (2 S)]: packed [S, R, V / S] times step [V], each row scaled to 127."""
    parts, rows, size = packed.shape
    even = np.empty((parts, rows, size // 2), np.int8)
    odd = np.empty_like(even)
    for part in range(parts):
        steps = step[part * size : (part + 1) * size]
        for r in range(rows):
            query, largest = packed[part, r], np.float32(0)
            for v in range(size):
                largest = max(largest, abs(query[v] * steps[v]))
            factor = LARGEST_WEIGHT / largest if largest > 0 else np.float32(0)
            for i in range(size // 2):
                even[part, r, i] = np.int8(np.rint(query[2 * i] * steps[2 * i] * factor))
                odd[part, r, i] = np.int8(np.rint(query[2 * i + 1] * steps[2 * i + 1] * factor))
    return even, odd


@njit(**SERIAL)
def score_codes(codes: Any, pages: Any, even: Any, odd: Any, out: Any, begin: Any, end: Any) -> None:
    """out[r, s, i] for pages [begin, end): the coded anchors' dot products with weights, in units of each row.

    codes [P, V / 2], even, odd [S, R, V / (2 S)], out f32 [R, S, n].
    """
    parts, rows, size = even.shape
    page_size = codes.shape[1]
    stored, evens, odds = codes.reshape(-1), even.reshape(-1), odd.reshape(-1)
    sums, ahead = np.empty(CHUNK, np.int32), max(TILE, PREFETCH_BYTES // page_size)
    for first in range(begin, end, CHUNK):
        last = min(first + CHUNK, end)
        for part in range(parts):
            for r in range(rows):
                for tile in range(first, last, TILE):
                    a = pages[tile] * page_size + part * size
                    b = pages[min(tile + 1, last - 1)] * page_size + part * size
                    c = pages[min(tile + 2, last - 1)] * page_size + part * size
                    d = pages[min(tile + 3, last - 1)] * page_size + part * size
                    if r == 0:
                        for i in range(TILE):
                            coming = pages[min(tile + ahead + i, end - 1)] * page_size + part * size
                            for line in range(0, size, LINE_BYTES):
                                prefetch(stored, coming + line)
                    at = (part * rows + r) * size
                    _dots(stored, a, b, c, d, evens, odds, at, size, sums, tile - first)
                into = out[r, part, first:last]
                for i in range(len(into)):
                    into[i] = np.float32(sums[i])
