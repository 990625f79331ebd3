"""Codes of rows of float32, and their bytes. Rows and codes are flat; sizes are not checked."""

from __future__ import annotations

from typing import Any

import numpy as np

from moorage.kernels.compiling import njit
from moorage.kernels.numba_flags import SERIAL
from moorage.kernels.packed_blocks.masks import third_bits
from moorage.kernels.simd_lanes import LANES

EXACT: dict[str, Any] = {**SERIAL, "fastmath": False}
"""Every sum and product as it is written, so that a code is the same wherever it is computed."""


@njit(**EXACT)
def code_uniform(normal: Any, count: Any, top: Any, codes: Any) -> None:
    """The nearest of 0 to `top` for each of `count` normalised numbers; 0 for NaN and below."""
    for d in range(count):
        shifted = min(normal[d] + np.float32(0.5), np.float32(top))
        codes[d] = np.uint8(np.int32(shifted)) if shifted > 0 else np.uint8(0)


@njit(**EXACT)
def code_levels(normal: Any, count: Any, bits: Any, limits: Any, codes: Any) -> None:
    """How many limits each of `count` normalised numbers exceeds; none is exceeded by NaN."""
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
def pack_row(codes: Any, first: Any, bits: Any, width: Any, packed: Any, at: Any) -> None:
    """`width` codes from `first` on as bytes from `packed[at]` on, as layout.py draws a row."""
    source, into, size = np.uint64(first), np.uint64(at), np.uint64(width)
    if bits == 8:
        for d in range(size):
            packed[into + d] = codes[source + d]
    elif bits == 4:
        half = size // np.uint64(2)
        for d in range(half):
            packed[into + d] = codes[source + d] | codes[source + half + d] << np.uint8(4)
    else:
        fours, start = codes.view(np.uint32), source // np.uint64(4)
        for i in range(size // np.uint64(4)):
            low = fours[start + i] & np.uint32(0x03030303)
            low |= low >> np.uint32(6) | low >> np.uint32(12) | low >> np.uint32(18)
            packed[into + i] = np.uint8(low & np.uint32(0xFF))
    if bits == 3:
        words, high = packed.view(np.uint16), (into + size // np.uint64(4)) // np.uint64(2)
        for i in range(size // np.uint64(LANES)):
            words[high + i] = third_bits(codes, np.int64(source + i * np.uint64(LANES)))


@njit(**EXACT)
def unpack_row(packed: Any, at: Any, bits: Any, width: Any, codes: Any, first: Any) -> None:
    """The `width` codes of the row at `packed[at]`, to `codes[first]` on."""
    source, size, into = np.uint64(at), np.uint64(width), np.uint64(first)
    if bits == 8:
        for d in range(size):
            codes[into + d] = packed[source + d]
    elif bits == 4:
        half = size // np.uint64(2)
        for d in range(half):
            codes[into + d] = packed[source + d] & np.uint8(15)
            codes[into + half + d] = packed[source + d] >> np.uint8(4)
    elif bits == 2:
        fours, start = codes.view(np.uint32), into // np.uint64(4)
        for i in range(size // np.uint64(4)):
            fours[start + i] = _four_pairs(np.uint32(packed[source + i]))
    else:
        fours, start, high = codes.view(np.uint32), into // np.uint64(4), source + size // np.uint64(4)
        for i in range(size // np.uint64(8)):
            third, two = np.uint32(packed[high + i]), np.uint64(2) * i
            left, right = np.uint32(packed[source + two]), np.uint32(packed[source + two + np.uint64(1)])
            fours[start + two] = _four_pairs(left) | _four_bits(third & np.uint32(15))
            fours[start + two + np.uint64(1)] = _four_pairs(right) | _four_bits(third >> np.uint32(4))


@njit(**EXACT)
def _four_pairs(byte: Any) -> Any:
    """The four pairs of bits of a byte, one in each byte of a word."""
    spread = byte | byte << np.uint32(6) | byte << np.uint32(12) | byte << np.uint32(18)
    return spread & np.uint32(0x03030303)


@njit(**EXACT)
def _four_bits(bits: Any) -> Any:
    """Four bits, the third of each byte of a word: the product moves bit k to bit 8 k."""
    return (bits * np.uint32(0x00204081) & np.uint32(0x01010101)) << np.uint32(2)
