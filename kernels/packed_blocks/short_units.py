"""Packed codes unpacked to int16 in vectors of 32 lanes, for heads of 64 or 128 channels (AVX-512 with VNNI).

128 channels are a *unit*: one row, or two rows of 64 channels. A unit becomes four vectors, in the order low and high
half for parity 0, then for parity 1. Lane i of a vector of parity p belongs to row i // (D / 4) of the unit, and to
channel 2 * (i % (D / 4)) + p of the lower or upper half of the head. So the two channels that are rotated together
lie in the same lane of two vectors.

All arguments of the intrinsics are addresses in bytes and numbers; nothing is checked.
"""

# ruff: noqa: ARG001 - the arguments of an intrinsic are its signature; their values come in `args`.

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from moorage.kernels.simd_lanes import I8, I16, I64
from moorage.kernels.simd_words import (
    LANES,
    SHORTS,
    VECTOR_BYTES,
    constant,
    high_product,
    load,
    look_up,
    merge,
    offset,
    pick,
    rounded_product,
    store,
)

UNIT = 128
"""Channels of a unit."""
VECTORS = 4
UNIT_BYTES = VECTORS * VECTOR_BYTES
"""Of an unpacked unit."""


def lanes_of(dim: int, parity: int) -> list[tuple[int, int]]:
    """(row of the unit, channel of a half) of each lane of the two vectors of a parity."""
    quarter = dim // 4
    return [(lane // quarter, 2 * (lane % quarter) + parity) for lane in range(LANES)]


class _Codes:
    """The levels of a unit, as code for a number of bits and a head size."""

    def __init__(self, builder: Any, bits: int, dim: int, table: Any) -> None:
        self._builder, self._bits, self._dim = builder, bits, dim
        self.unit_bytes = UNIT * bits // 8
        self._table = None if bits == 8 else load(builder, table, I16, LANES)

    def at(self, address: Any) -> list[Any]:
        """The four vectors of the unit at an address."""
        if self._bits == 8:
            return self._bytes(address)
        return self._nibbles(address) if self._bits == 4 else self._pairs(address)

    def _shifted(self, words: Any, by: int) -> Any:
        return self._builder.lshr(words, constant([by] * LANES)) if by else words

    def _bytes(self, address: Any) -> list[Any]:
        """Codes less 128, in the upper byte of each lane."""
        builder, half = self._builder, self._dim // 2
        halves = []
        for first in (0, half):
            parts = [load(builder, offset(builder, address, at + first), I16, half // 2)
                     for at in range(0, UNIT, self._dim)]  # fmt: skip
            words = parts[0] if len(parts) == 1 else pick(builder, parts[0], parts[1], list(range(LANES)))
            halves.append(builder.xor(words, constant([-0x7F80] * LANES)))
        even = [builder.shl(words, constant([8] * LANES)) for words in halves]
        odd = [builder.and_(words, constant([-256] * LANES)) for words in halves]
        return [*even, *odd]

    def _nibbles(self, address: Any) -> list[Any]:
        words = load(self._builder, address, I16, LANES)
        return [look_up(self._builder, self._table, self._shifted(words, by)) for by in (0, 4, 8, 12)]

    def _pairs(self, address: Any) -> list[Any]:
        """Two bits, or three of which the third lies in a plane of its own."""
        builder, dim, has_third = self._builder, self._dim, self._bits == 3
        row_bytes = dim * self._bits // 8
        octets = load(builder, address, I8, 2 * LANES if has_third else LANES)
        levels = []
        for parity in (0, 1):
            lanes = lanes_of(dim, parity)
            for half in (0, dim // 2):
                # Each lane has its byte twice, so that its code can move down from the upper one.
                codes = self._twice(
                    octets, [row * row_bytes + (half + channel) // 4 for row, channel in lanes]
                )
                index = high_product(
                    builder, codes, constant([1 << 8 - 2 * (channel % 4) for _, channel in lanes])
                )
                if has_third:
                    places = [row * row_bytes + dim // 4 + (half + channel) // 8 for row, channel in lanes]
                    bits = constant([1 << 10 - channel % 8 for _, channel in lanes])
                    third = high_product(builder, self._twice(octets, places), bits)
                    index = merge(builder, 3, index, third)
                levels.append(look_up(builder, self._table, index))
        return levels

    def _twice(self, octets: Any, places: list[int]) -> Any:
        """Lanes of which both bytes are one of a vector of bytes."""
        bytes_of = pick(self._builder, octets, octets, [place for place in places for _ in range(2)])
        return self._builder.bitcast(bytes_of, SHORTS)


def _unpack_keys(bits: int, dim: int) -> Callable[..., Any]:
    def unpack(_typing: Any, codes: Any, units: Any, table: Any, operands: Any, out: Any) -> Any:
        def build(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            codes, units, table, operands, out = args
            source = _Codes(builder, bits, dim, table)
            places = [offset(builder, operands, at * VECTOR_BYTES) for at in range(2 * VECTORS)]
            scales_zeros = [load(builder, place, I16, LANES) for place in places]
            with cgutils.for_range(builder, units) as loop:
                at = builder.add(codes, builder.mul(loop.index, I64(source.unit_bytes)))
                into = builder.add(out, builder.mul(loop.index, I64(UNIT_BYTES)))
                for v, levels in enumerate(source.at(at)):
                    scaled = rounded_product(builder, levels, scales_zeros[2 * v])
                    vector = builder.add(scaled, scales_zeros[2 * v + 1])
                    store(builder, vector, offset(builder, into, v * VECTOR_BYTES))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5), build

    made: Callable[..., Any] = intrinsic(unpack)
    return made


def _pairs_of_rows(builder: Any, dim: int, upper: list[Any], lower: list[Any] | None) -> list[Any]:
    """Vectors whose int32 lanes hold one channel of two successive rows."""
    if lower is None:
        lanes = [lane for i in range(LANES // 2) for lane in (i, i + LANES // 2)]
        return [pick(builder, vector, vector, lanes) for vector in upper]
    found = []
    for a, b in zip(upper, lower, strict=True):
        for first in (0, 4):
            lanes = [
                by + base + first + i for base in range(0, LANES, 8) for i in range(4) for by in (0, LANES)
            ]
            found.append(pick(builder, a, b, lanes))
    return found


def accumulated_channels(dim: int) -> list[int]:
    """The channel of each element of the sums that `weigh_pairs` adds to."""
    found = []
    for parity in (0, 1):
        for half in (0, dim // 2):
            channels = [half + channel for _, channel in lanes_of(dim, parity)]
            if dim == UNIT:
                found += [
                    channels[base + first + i]
                    for first in (0, 4)
                    for base in range(0, LANES, 8)
                    for i in range(4)
                ]
            else:
                found += channels[: LANES // 2]
    return found


def _unpack_values(bits: int, dim: int) -> Callable[..., Any]:
    def unpack(_typing: Any, codes: Any, count: Any, table: Any, out: Any) -> Any:
        def build(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            codes, count, table, out = args
            source = _Codes(builder, bits, dim, table)
            pairs = builder.udiv(builder.add(count, I64(1)), I64(2))
            size = dim * bits // 4  # bytes of two rows
            vectors = dim // 16
            with cgutils.for_range(builder, pairs) as loop:
                at = builder.add(codes, builder.mul(loop.index, I64(size)))
                into = builder.add(out, builder.mul(loop.index, I64(vectors * VECTOR_BYTES)))
                lower = None
                if dim == UNIT:
                    is_last = builder.icmp_unsigned(
                        "==", builder.add(builder.mul(loop.index, I64(2)), I64(1)), count
                    )
                    step = builder.select(is_last, I64(0), I64(source.unit_bytes))
                    lower = source.at(builder.add(at, step))
                for v, vector in enumerate(_pairs_of_rows(builder, dim, source.at(at), lower)):
                    store(builder, vector, offset(builder, into, v * VECTOR_BYTES))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 4), build

    made: Callable[..., Any] = intrinsic(unpack)
    return made


(
    unpack_keys_8_64, unpack_keys_4_64, unpack_keys_3_64, unpack_keys_2_64,
    unpack_keys_8_128, unpack_keys_4_128, unpack_keys_3_128, unpack_keys_2_128,
) = (_unpack_keys(bits, dim) for dim in (64, 128) for bits in (8, 4, 3, 2))  # fmt: skip
"""(codes, units, table, operands, out), by bits and head size: `units` units of codes become int16 at `out`,
level * scale / 2**15 + zero. The table is of LANES int16 levels. `operands` are scale and zero, a vector each, for
each of the four vectors."""
(
    unpack_values_8_64, unpack_values_4_64, unpack_values_3_64, unpack_values_2_64,
    unpack_values_8_128, unpack_values_4_128, unpack_values_3_128, unpack_values_2_128,
) = (_unpack_values(bits, dim) for dim in (64, 128) for bits in (8, 4, 3, 2))  # fmt: skip
"""(codes, count, table, out): the levels of `count` rows, as vectors whose int32 lanes hold one channel of two
successive rows. In an odd count the last row stands beside itself, or beside what follows it."""
