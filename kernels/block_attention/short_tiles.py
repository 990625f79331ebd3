"""Products of int16 queries and weights with unpacked units of keys and values, see `packed_blocks.short_units`.

All arguments of the intrinsics are addresses in bytes and numbers; nothing is checked.
"""

# ruff: noqa: ARG001 - the arguments of an intrinsic are its signature; their values come in `args`.

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from moorage.kernels.packed_blocks.short_units import UNIT, UNIT_BYTES, VECTORS
from moorage.kernels.simd import LINE_BYTES
from moorage.kernels.simd_lanes import FLOAT, FLOATS, I16, I32, I64, multiply_add
from moorage.kernels.simd_words import (
    LANES,
    SUMS,
    VECTOR_BYTES,
    add_pair_dots,
    ask,
    load,
    load_one,
    offset,
    pick,
    rounded_product,
    splat,
    store,
)

TILE = 4
"""Units whose products are added side by side."""


def _joined(builder: Any, left: Any, right: Any, width: int, add: Any) -> Any:
    """Lanes of which those without the bit `width` of their number are sums over this bit of `left`, others of
    `right`."""
    count = left.type.count
    kept = [lane + count * (lane & width > 0) for lane in range(count)]
    moved = [(lane ^ width) + count * (lane & width > 0) for lane in range(count)]
    return add(pick(builder, left, right, kept), pick(builder, left, right, moved))


def _folded(builder: Any, vector: Any, width: int) -> Any:
    """The sums over the highest bits of the lanes' numbers, down to `width` lanes."""
    while vector.type.count > width:
        half = vector.type.count // 2
        low, high = (pick(builder, vector, vector, list(range(at, at + half))) for at in (0, half))
        vector = builder.fadd(low, high)
    return vector


def _summed(builder: Any, sums: list[list[Any]], dim: int) -> list[Any]:
    """Dot products of each query with the rows of TILE units, from the int32 sums [queries][TILE] of 16 lanes."""
    quarters = []
    for totals in sums:
        halves = [_joined(builder, totals[at], totals[at + 1], 1, builder.add) for at in (0, 2)]
        quarters.append(builder.sitofp(_joined(builder, halves[0], halves[1], 2, builder.add), FLOATS))
    # Lane i of a vector is of unit i % TILE; those of a row are fours of lanes.
    if dim == UNIT and len(quarters) == TILE:
        pairs = [_joined(builder, quarters[at], quarters[at + 1], 4, builder.fadd) for at in (0, 2)]
        every = _joined(builder, pairs[0], pairs[1], 8, builder.fadd)
        return [pick(builder, every, every, list(range(at, at + TILE))) for at in range(0, TILE * TILE, TILE)]
    if dim == UNIT:
        return [_folded(builder, vector, TILE) for vector in quarters]
    found = []
    for vector in quarters:
        rows = [
            _folded(builder, pick(builder, vector, vector, list(range(at, at + 8))), TILE) for at in (0, 8)
        ]
        found.append(pick(builder, rows[0], rows[1], [i + n for i in range(TILE) for n in (0, TILE)]))
    return found


def _dots(num_queries: int, dim: int) -> Callable[..., Any]:
    def dots(
        _typing: Any, keys: Any, tiles: Any, angles: Any, plane_bytes: Any, rotates: Any, queries: Any, factors: Any,
        out: Any, out_stride: Any, coming: Any, bytes_each: Any,
    ) -> Any:  # fmt: skip
        def build(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            (
                keys,
                tiles,
                angles,
                plane_bytes,
                rotates,
                queries,
                factors,
                out,
                out_stride,
                coming,
                bytes_each,
            ) = args
            planes = [builder.add(angles, builder.mul(plane_bytes, I64(n))) for n in range(VECTORS)]
            by = [load_one(builder, offset(builder, factors, 4 * m), FLOAT) for m in range(num_queries)]

            def rotated(vectors: list[Any], parity: int, row: Any) -> list[Any]:
                c, s = (load(builder, builder.add(planes[2 * parity + n], row), I16, LANES) for n in (0, 1))
                low, high = vectors
                return [
                    builder.sub(rounded_product(builder, low, c), rounded_product(builder, high, s)),
                    builder.add(rounded_product(builder, high, c), rounded_product(builder, low, s)),
                ]

            lines = builder.udiv(builder.add(bytes_each, I64(LINE_BYTES - 1)), I64(LINE_BYTES))

            def tile(index: Any, turned: bool) -> None:
                ask(builder, builder.add(coming, builder.mul(index, bytes_each)), lines)
                sums = [[ir.Constant(SUMS, [0] * (LANES // 2))] * TILE for _ in range(num_queries)]
                first = builder.mul(index, I64(TILE))
                for parity in (0, 1):
                    for u in range(TILE):
                        number = builder.add(first, I64(u))
                        unit = builder.add(keys, builder.mul(number, I64(UNIT_BYTES)))
                        vectors = [
                            load(
                                builder, offset(builder, unit, VECTOR_BYTES * (2 * parity + part)), I16, LANES
                            )
                            for part in (0, 1)
                        ]
                        if turned:
                            vectors = rotated(vectors, parity, builder.mul(number, I64(VECTOR_BYTES)))
                        for m in range(num_queries):
                            for part, vector in enumerate(vectors):
                                place = UNIT_BYTES * m + VECTOR_BYTES * (2 * parity + part)
                                query = load(builder, offset(builder, queries, place), I16, LANES)
                                sums[m][u] = add_pair_dots(builder, sums[m][u], vector, query)
                for m, found in enumerate(_summed(builder, sums, dim)):
                    into = builder.add(out, builder.mul(out_stride, I64(m)))
                    store(
                        builder,
                        builder.fmul(found, splat(builder, by[m], found.type.count)),
                        builder.add(into, builder.mul(index, I64(4 * found.type.count))),
                    )

            with builder.if_else(rotates) as (then, otherwise):
                for branch, turned in ((then, True), (otherwise, False)):
                    with branch, cgutils.for_range(builder, tiles) as loop:
                        tile(loop.index, turned)
            return context.get_dummy_value()

        i = types.int64
        return types.void(i, i, i, i, types.boolean, *[i] * 6), build

    made: Callable[..., Any] = intrinsic(dots)
    return made


short_dots_64_1, short_dots_64_2, short_dots_64_3, short_dots_64_4 = (
    _dots(count, 64) for count in (1, 2, 3, 4)
)
"""(keys, tiles, angles, plane_bytes, rotates, queries, factors, out, out_stride, coming, bytes_each): logits of
queries, of VECTORS vectors each, with TILE * tiles units of int16 keys. Query m's are multiplied by factors[m]
and lie from out + m * out_stride on. Where `rotates`, keys are rotated by the angles of `prepare_angles`, whose
planes begin with the first key's. For each TILE units, bytes_each bytes from `coming` on are asked for."""
short_dots_128_1, short_dots_128_2, short_dots_128_3, short_dots_128_4 = (
    _dots(count, 128) for count in (1, 2, 3, 4)
)
"""The same for heads of 128 channels."""


def _weigh(num_queries: int, dim: int) -> Callable[..., Any]:
    vectors = dim // 16
    columns = vectors if num_queries <= 2 else min(4, vectors)

    def weigh(
        _typing: Any, values: Any, pairs: Any, weights: Any, weights_stride: Any, factors: Any, factors_stride: Any,
        sums: Any, coming: Any, bytes_each: Any,
    ) -> Any:  # fmt: skip
        def build(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            values, pairs, weights, weights_stride, factors, factors_stride, sums, coming, bytes_each = args
            lines = [builder.add(weights, builder.mul(weights_stride, I64(m))) for m in range(num_queries)]
            share = builder.udiv(bytes_each, I64(vectors // columns))
            num_lines = builder.udiv(builder.add(share, I64(LINE_BYTES - 1)), I64(LINE_BYTES))
            for first in range(0, vectors, columns):
                own = builder.add(coming, builder.mul(share, I64(first // columns)))
                totals = [cgutils.alloca_once(builder, SUMS) for _ in range(num_queries * columns)]
                for total in totals:
                    builder.store(ir.Constant(SUMS, [0] * (LANES // 2)), total)
                with cgutils.for_range(builder, pairs) as loop:
                    ask(builder, builder.add(own, builder.mul(loop.index, bytes_each)), num_lines)
                    pair = builder.add(values, builder.mul(loop.index, I64(vectors * VECTOR_BYTES)))
                    held = [
                        load(builder, offset(builder, pair, VECTOR_BYTES * (first + c)), I16, LANES)
                        for c in range(columns)
                    ]
                    for m, line in enumerate(lines):
                        place = builder.add(line, builder.mul(loop.index, I64(4)))
                        word = load_one(builder, place, I32)
                        both = builder.bitcast(splat(builder, word, LANES // 2), held[0].type)
                        for c, vector in enumerate(held):
                            total = totals[m * columns + c]
                            builder.store(add_pair_dots(builder, builder.load(total), vector, both), total)
                for m in range(num_queries):
                    place = builder.add(factors, builder.mul(factors_stride, I64(m)))
                    factor = load_one(builder, place, FLOAT)
                    for c in range(columns):
                        into = offset(builder, sums, 4 * dim * m + VECTOR_BYTES * (first + c))
                        number = builder.sitofp(builder.load(totals[m * columns + c]), FLOATS)
                        more = multiply_add(
                            builder,
                            number,
                            splat(builder, factor, LANES // 2),
                            load(builder, into, FLOAT, 16),
                        )
                        store(builder, more, into)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 9), build

    made: Callable[..., Any] = intrinsic(weigh)
    return made


weigh_pairs_64_1, weigh_pairs_64_2, weigh_pairs_64_3, weigh_pairs_64_4 = (
    _weigh(count, 64) for count in (1, 2, 3, 4)
)
"""(values, pairs, weights, weights_stride, factors, factors_stride, sums, coming, bytes_each): adds the sums of
`pairs` pairs of rows of int16 levels by the int16 weights of each query, times its factor, to sums
[queries, D], whose channels are in the order of `accumulated_channels`. Strides are bytes from one query to the
next. For each pair, bytes_each bytes from `coming` on are asked for."""
weigh_pairs_128_1, weigh_pairs_128_2, weigh_pairs_128_3, weigh_pairs_128_4 = (
    _weigh(count, 128) for count in (1, 2, 3, 4)
)
"""The same for heads of 128 channels."""
