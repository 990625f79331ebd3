"""Codes of rows of float32, and their bytes. Rows and codes are flat; sizes are not checked."""

from __future__ import annotations

from typing import Any

import numpy as np

from moorage.kernels.compiling import njit
from moorage.kernels.numba_flags import SERIAL

EXACT: dict[str, Any] = {**SERIAL, "fastmath": False}
"""Every sum and product as it is written, so that a code is the same wherever it is computed."""


@njit(**EXACT)
def code_uniform(normal: Any, count: Any, top: Any, codes: Any) -> None:
    """The nearest of 0 to `top` for each of `count` normalised numbers; 0 for NaN."""
    for d in range(count):
        shifted = min(normal[d] + np.float32(0.5), np.float32(top))
        codes[d] = np.uint8(np.int32(shifted)) if shifted > 0 else np.uint8(0)


@njit(**EXACT)
def code_levels(normal: Any, count: Any, bits: Any, limits: Any, codes: Any) -> None:
    """How many limits each of `count` normalised numbers exceeds; 0 for NaN."""
    if bits == 2:
        a, b, c = limits[0], limits[1], limits[2]
        for d in range(count):
            x = normal[d]
            codes[d] = np.int32(x > a) + np.int32(x > b) + np.int32(x > c)
    elif bits == 3:
        _count_8(normal, count, limits, codes)
    else:
        _count_16(normal, count, limits, codes)


@njit(**EXACT)
def _count_8(normal: Any, count: Any, limits: Any, codes: Any) -> None:
    a, b, c, e, f, g, h = limits[0], limits[1], limits[2], limits[3], limits[4], limits[5], limits[6]
    for d in range(count):
        x = normal[d]
        low = np.int32(x > a) + np.int32(x > b) + np.int32(x > c)
        codes[d] = low + np.int32(x > e) + np.int32(x > f) + np.int32(x > g) + np.int32(x > h)


@njit(**EXACT)
def _count_16(normal: Any, count: Any, limits: Any, codes: Any) -> None:
    a, b, c, e, f, g, h = limits[0], limits[1], limits[2], limits[3], limits[4], limits[5], limits[6]
    i, j, k, m, n, o, p, q = (
        limits[7], limits[8], limits[9], limits[10], limits[11], limits[12], limits[13], limits[14]
    )  # fmt: skip
    for d in range(count):
        x = normal[d]
        low = np.int32(x > a) + np.int32(x > b) + np.int32(x > c) + np.int32(x > e)
        low += np.int32(x > f) + np.int32(x > g) + np.int32(x > h) + np.int32(x > i)
        high = np.int32(x > j) + np.int32(x > k) + np.int32(x > m) + np.int32(x > n)
        codes[d] = low + high + np.int32(x > o) + np.int32(x > p) + np.int32(x > q)


@njit(**EXACT)
def pack_row(codes: Any, words: Any, bits: Any, first: Any, width: Any, packed: Any, at: Any) -> None:
    """`width` codes from `first` on as bytes from `packed[at]` on, as layout.py draws a row.

    `words` are the codes, 8 at a time.
    """
    if bits == 8:
        for d in range(width):
            packed[at + d] = codes[first + d]
    elif bits == 4:
        half = width // 2
        for d in range(half):
            packed[at + d] = codes[first + d] | codes[first + half + d] << 4
    else:
        first //= 8
        for i in range(width // 8):
            pairs = words[first + i] & np.uint64(0x0303030303030303)
            pairs = (pairs | pairs >> np.uint64(6)) & np.uint64(0x000F000F000F000F)
            pairs = (pairs | pairs >> np.uint64(12)) & np.uint64(0x000000FF000000FF)
            packed[at + 2 * i] = np.uint8(pairs & np.uint64(0xFF))
            packed[at + 2 * i + 1] = np.uint8(pairs >> np.uint64(32))
        if bits == 3:
            for i in range(width // 8):
                third = words[first + i] >> np.uint64(2) & np.uint64(0x0101010101010101)
                # The product moves bit 8 k to bit 56 + k, and nothing else into the highest byte.
                packed[at + width // 4 + i] = np.uint8(third * np.uint64(0x0102040810204080) >> np.uint64(56))


@njit(**EXACT)
def unpack_row(packed: Any, at: Any, bits: Any, width: Any, codes: Any) -> None:
    """The `width` codes of the row at `packed[at]`."""
    if bits == 8:
        for d in range(width):
            codes[d] = packed[at + d]
    elif bits == 4:
        half = width // 2
        for d in range(half):
            codes[d] = packed[at + d] & np.uint8(15)
            codes[half + d] = packed[at + d] >> np.uint8(4)
    elif bits == 2:
        for i in range(width // 4):
            for j in range(4):
                codes[4 * i + j] = packed[at + i] >> np.uint8(2 * j) & np.uint8(3)
    else:
        third = at + width // 4
        for i in range(width // 8):
            for j in range(8):
                low = packed[at + 2 * i + j // 4] >> np.uint8(2 * (j % 4)) & np.uint8(3)
                codes[8 * i + j] = low | (packed[third + i] >> np.uint8(j) & np.uint8(1)) << np.uint8(2)
