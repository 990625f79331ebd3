"""What int16 products with unpacked codes need beside these: levels, scales, queries and angles as int16.

The lanes are those of `short_units.py`. Two channels that are rotated together share a *range*: the largest number
that the codes of a key can say there. A key is stored as a share of its range, and the query is multiplied by it.
All arguments of the intrinsics are addresses in bytes and numbers; nothing is checked.
"""

# ruff: noqa: ARG001 - the arguments of an intrinsic are its signature; their values come in `args`.

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from moorage.kernels.packed_blocks.short_units import lanes_of
from moorage.kernels.simd_lanes import FLOAT, I64, call
from moorage.kernels.simd_words import (
    LANES,
    VECTOR_BYTES,
    all_floats,
    larger,
    largest,
    load,
    magnitudes,
    offset,
    pick,
    splat,
    store,
    to_shorts,
)

MOST_KEY = 23080
"""The largest int16 of a key: a rotation makes it at most sqrt(2) times as large."""
OUTLIER_RANGES = 4
"""Ranges that an outlier may have and still be an int16 of its key."""
ANGLE_ONE = 32767
"""The int16 that stands for a cosine of 1."""
LEVEL_ONE = 32767
"""The int16 that stands for the level farthest from the middle of all levels."""
MOST_WEIGHTS = 32700.0
"""The sum of the int16 weights of a tile of values."""
_MOST_QUERY, _MOST_QUERY_SUM = 32700.0, 65000.0
"""Of the int16 of a query, and of the sum over the channels of which an int32 adds the products up."""
TINY = 1e-30
"""What is smaller counts as nothing: its inverse would be infinite."""


def _lanes(builder: Any, vector: Any, dim: int, parity: int) -> Any:
    """Half a head in the lanes of a parity."""
    return pick(builder, vector, vector, [channel for _, channel in lanes_of(dim, parity)])


@intrinsic
def prepare_levels(_typing: Any, levels: Any, bits: Any, out: Any) -> Any:
    """The int16 of 16 levels, twice, to `out`; returns (middle, span): a level is middle + span * int16 / LEVEL_ONE.

    With 8 bits there is no table, and the int16 is 256 * (code - 128).
    """

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        levels, bits, out = args
        numbers = load(builder, levels, FLOAT, 16)
        most = largest(builder, numbers)
        least = builder.fneg(largest(builder, builder.fneg(numbers)))
        half = FLOAT(0.5)
        middle = builder.fmul(builder.fadd(most, least), half)
        span = builder.fmul(builder.fsub(most, least), half)
        is_flat = builder.fcmp_ordered("<", span, FLOAT(TINY))
        factor = builder.select(is_flat, FLOAT(0.0), builder.fdiv(FLOAT(LEVEL_ONE), span))
        shifted = builder.fsub(numbers, splat(builder, middle, 16))
        shorts = to_shorts(builder, builder.fmul(shifted, splat(builder, factor, 16)))
        store(builder, pick(builder, shorts, shorts, [i % 16 for i in range(LANES)]), out)
        has_none = builder.icmp_unsigned("==", bits, I64(8))
        found = (
            builder.select(has_none, FLOAT(128.0), middle),
            builder.select(has_none, FLOAT(128.0 * LEVEL_ONE / 2**15), span),
        )
        return context.make_tuple(builder, signature.return_type, found)

    pair = types.UniTuple(types.float32, 2)
    return pair(*[types.int64] * 3), build


def _prepare_keys(dim: int) -> Callable[..., Any]:
    half = dim // 2

    def prepare(
        _typing: Any,
        scale: Any,
        zero: Any,
        middle: Any,
        span: Any,
        one: Any,
        operands: Any,
        ranges: Any,
        shares: Any,
    ) -> Any:
        def build(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            scale, zero, middle, span, one, operands, ranges, shares = args
            middles, spans = (splat(builder, each, half) for each in (middle, span))
            scales, zeros = [], []
            for first in (0, 4 * half):
                factor = load(builder, offset(builder, scale, first), FLOAT, half)
                added = load(builder, offset(builder, zero, first), FLOAT, half)
                scales.append(builder.fmul(factor, spans))
                zeros.append(builder.fadd(added, builder.fmul(factor, middles)))
            reach = [
                builder.fadd(magnitudes(builder, z), magnitudes(builder, s))
                for z, s in zip(zeros, scales, strict=True)
            ]
            most = larger(builder, *reach)
            tiny = builder.fcmp_ordered("<", most, all_floats(TINY, half))
            most = builder.select(tiny, all_floats(1.0, half), most)
            store(builder, most, ranges)
            share = builder.fdiv(splat(builder, one, half), most)
            store(builder, share, shares)
            by_level = builder.fmul(share, all_floats(2**15 / LEVEL_ONE, half))
            for parity in (0, 1):
                for part in (0, 1):
                    place = offset(builder, operands, 2 * VECTOR_BYTES * (2 * parity + part))
                    for vector, factor, at in ((scales, by_level, 0), (zeros, share, VECTOR_BYTES)):
                        shorts = to_shorts(builder, builder.fmul(vector[part], factor))
                        store(builder, _lanes(builder, shorts, dim, parity), offset(builder, place, at))
            return context.get_dummy_value()

        i, f = types.int64, types.float32
        return types.void(i, i, f, f, f, i, i, i), build

    made: Callable[..., Any] = intrinsic(prepare)
    return made


prepare_keys_64, prepare_keys_128 = (_prepare_keys(dim) for dim in (64, 128))
"""(scale, zero, middle, span, one, operands, ranges, shares): from float32 scale and zero [D] of keys and from
`prepare_levels` the int16 `operands` of `unpack_keys`, by which a range is `one`; the ranges, float32 [D / 2]; and
shares, float32 [D / 2]: `one` by range."""


def _prepare_query(dim: int) -> Callable[..., Any]:
    half = dim // 2

    def prepare(_typing: Any, query: Any, ranges: Any, out: Any) -> Any:
        def build(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            query, ranges, out = args
            most = load(builder, ranges, FLOAT, half)
            parts = [
                builder.fmul(load(builder, offset(builder, query, first), FLOAT, half), most)
                for first in (0, 4 * half)
            ]
            vectors = [_lanes(builder, part, dim, parity) for parity in (0, 1) for part in parts]
            sizes = [magnitudes(builder, vector) for vector in vectors]
            sums = builder.fadd(builder.fadd(*sizes[:2]), builder.fadd(*sizes[2:]))
            while sums.type.count > 4:
                even, odd = (
                    pick(builder, sums, sums, list(range(first, sums.type.count, 2))) for first in (0, 1)
                )
                sums = builder.fadd(even, odd)
            highest = largest(
                builder, larger(builder, larger(builder, *sizes[:2]), larger(builder, *sizes[2:]))
            )
            of_sum = builder.fmul(largest(builder, sums), FLOAT(1 / _MOST_QUERY_SUM))
            one = larger(builder, builder.fmul(highest, FLOAT(1 / _MOST_QUERY)), of_sum)
            is_tiny = builder.fcmp_ordered("<", one, FLOAT(TINY))
            factor = builder.select(is_tiny, FLOAT(0.0), builder.fdiv(FLOAT(1.0), one))
            for v, vector in enumerate(vectors):
                shorts = to_shorts(builder, builder.fmul(vector, splat(builder, factor, LANES)))
                store(builder, shorts, offset(builder, out, v * VECTOR_BYTES))
            # NaN where a channel is not finite, whose int16 mean nothing.
            zero = call(
                builder,
                "llvm.vector.reduce.fadd.v4f32",
                FLOAT,
                [FLOAT(0.0), builder.fmul(sums, all_floats(0.0, 4))],
            )
            return builder.fadd(one, zero)

        return types.float32(*[types.int64] * 3), build

    made: Callable[..., Any] = intrinsic(prepare)
    return made


prepare_query_64, prepare_query_128 = (_prepare_query(dim) for dim in (64, 128))
"""(query, ranges, out): float32 [D] times the ranges as VECTORS vectors of int16 at `out`. Returns what an int16
of a query stands for."""


def _prepare_angles(dim: int) -> Callable[..., Any]:
    half = dim // 2

    def prepare(_typing: Any, cos: Any, sin: Any, rows: Any, out: Any, plane_bytes: Any) -> Any:
        def build(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            cos, sin, rows, out, plane_bytes = args
            with cgutils.for_range(builder, rows) as loop:
                first = builder.mul(loop.index, I64(4 * half))
                into = builder.add(out, builder.mul(loop.index, I64(half)))
                for number, table in enumerate((cos, sin)):
                    floats = load(builder, builder.add(table, first), FLOAT, half)
                    shorts = to_shorts(builder, builder.fmul(floats, all_floats(ANGLE_ONE, half)))
                    for parity in (0, 1):
                        place = builder.add(into, builder.mul(plane_bytes, I64(2 * parity + number)))
                        store(builder, pick(builder, shorts, shorts, list(range(parity, half, 2))), place)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5), build

    made: Callable[..., Any] = intrinsic(prepare)
    return made


prepare_angles_64, prepare_angles_128 = (_prepare_angles(dim) for dim in (64, 128))
"""(cos, sin, rows, out, plane_bytes): float32 cos and sin [rows, D / 2] as int16 in VECTORS planes, each
[rows, D / 4]: cosines and sines of parity 0, then of parity 1."""
