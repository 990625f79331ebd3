"""Register tiles and memory hints that Numba's auto-vectoriser does not find.

A dot product of a 128-wide head is so short that summing across lanes costs as much as the products. A tile of four
stored vectors and up to four queries loads each operand once for four uses, and transposes its accumulators while
it adds them. Arrays are flat and contiguous; offsets and sizes are in elements and are not checked.
"""

# ruff: noqa: ARG001 - the arguments of an intrinsic are its signature; their values come in `args`.

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from itertools import chain
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 8
"""float32 lanes of a vector; sizes must be a multiple of this."""
TILE = 4
"""Stored vectors of a tile."""
LINE_BYTES = 64
"""Of a cache line, which one `prefetch` asks for."""
MIN_SUMS = 16
"""Running sums of a tile, so that two additions a cycle have something to do while each takes four."""

WIDE = ir.VectorType(ir.FloatType(), LANES)
_I32, _I64 = ir.IntType(32), ir.IntType(64)
ELEMENT = {types.uint8: ir.IntType(8), types.uint16: ir.HalfType(), types.float32: ir.FloatType()}


def pointer_to(context: Any, builder: Any, array_type: Any, array: Any, offset: Any) -> Any:
    """Pointer to array[offset]."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(builder.bitcast(data, ELEMENT[array_type.dtype].as_pointer()), [offset])


def load_lanes(builder: Any, pointer: Any, element: ir.Type) -> Any:
    """LANES elements as float32."""
    typed = builder.bitcast(pointer, ir.VectorType(element, LANES).as_pointer())
    vector = builder.load(typed, align=2 if element == ir.HalfType() else 4)
    return builder.fpext(vector, WIDE) if element == ir.HalfType() else vector


def _shuffle(builder: Any, left: Any, right: Any, lanes: list[int]) -> Any:
    return builder.shuffle_vector(left, right, ir.Constant(ir.VectorType(_I32, len(lanes)), lanes))


def _splat(builder: Any, value: Any) -> Any:
    lane = builder.insert_element(ir.Constant(WIDE, ir.Undefined), value, ir.Constant(_I32, 0))
    return _shuffle(builder, lane, lane, [0] * LANES)


def _lane_sums(builder: Any, vectors: list[Any]) -> list[Any]:
    """Vectors whose lanes, one after the other, are the sums over the lanes of `vectors` (4, 8 or 16)."""
    for _ in range(LANES.bit_length() - 1):
        if len(vectors) == 1:
            vectors = vectors * 2
        pairs = list(zip(vectors[::2], vectors[1::2], strict=True))
        even = [_shuffle(builder, *pair, list(range(0, 2 * LANES, 2))) for pair in pairs]
        odd = [_shuffle(builder, *pair, list(range(1, 2 * LANES, 2))) for pair in pairs]
        vectors = [builder.fadd(left, right) for left, right in zip(even, odd, strict=True)]
    return vectors


def _accumulate(builder: Any, rows: list[Any], lines: list[Any], element: ir.Type, size: Any) -> list[Any]:
    """Lane-wise partial dot products of every row with every line, line by line.

    A sum that waits for itself takes four cycles a term, so there are MIN_SUMS of them: each of a tile's partial
    products alternates between several.
    """
    ways = max(1, MIN_SUMS // (len(rows) * len(lines)))
    sums = [[cgutils.alloca_once(builder, WIDE) for _ in range(ways)] for _ in range(len(rows) * len(lines))]
    for total in chain.from_iterable(sums):
        builder.store(ir.Constant(WIDE, [0.0] * LANES), total)

    def step(first: Any, way: int) -> None:
        at = builder.mul(first, ir.Constant(_I64, LANES))
        vectors = [load_lanes(builder, builder.gep(row, [at]), element) for row in rows]
        for m, line in enumerate(lines):
            query = load_lanes(builder, builder.gep(line, [at]), ir.FloatType())
            for vector, totals in zip(vectors, sums[m * len(rows) :], strict=False):
                product = builder.fmul(vector, query, flags=("contract",))
                added = builder.fadd(product, builder.load(totals[way]), flags=("contract",))
                builder.store(added, totals[way])

    count, stride = builder.sdiv(size, ir.Constant(_I64, LANES)), ir.Constant(_I64, ways)
    rounds = builder.sdiv(count, stride)
    with cgutils.for_range(builder, rounds) as loop:
        for way in range(ways):
            step(builder.add(builder.mul(loop.index, stride), ir.Constant(_I64, way)), way)
    if ways > 1:
        with cgutils.for_range(builder, count, start=builder.mul(rounds, stride)) as loop:
            step(loop.index, 0)
    return [reduce(builder.fadd, [builder.load(total) for total in totals]) for totals in sums]


def _dot_tile(num_queries: int) -> Callable[..., Any]:
    def dots(
        _typing: Any, stored: Any, a: Any, b: Any, c: Any, d: Any, queries: Any, at: Any, size: Any, out: Any,
        out_at: Any, out_stride: Any, fresh: Any,
    ) -> Any:  # fmt: skip
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kinds = signature.args
            rows = [pointer_to(context, builder, kinds[0], args[0], args[1 + i]) for i in range(TILE)]
            query = pointer_to(context, builder, kinds[5], args[5], args[6])
            size, target = args[7], pointer_to(context, builder, kinds[8], args[8], args[9])
            steps = [ir.Constant(_I64, m) for m in range(num_queries)]
            lines = [builder.gep(query, [builder.mul(size, step)]) for step in steps]
            totals = _lane_sums(builder, _accumulate(builder, rows, lines, ELEMENT[kinds[0].dtype], size))
            for m, step in enumerate(steps):
                vector, lane = totals[m * TILE // LANES], m * TILE % LANES
                part = _shuffle(builder, vector, vector, list(range(lane, lane + TILE)))
                into = builder.gep(target, [builder.mul(args[10], step)])
                into = builder.bitcast(into, part.type.as_pointer())
                held = builder.load(into, align=4)
                larger = builder.select(builder.fcmp_ordered(">", part, held), part, held)
                builder.store(builder.select(args[11], part, larger), into, align=4)
            return context.get_dummy_value()

        i = types.int64
        return types.void(stored, i, i, i, i, queries, i, i, out, i, i, types.boolean), build

    tile: Callable[..., Any] = intrinsic(dots)
    return tile


dots_1 = _dot_tile(1)
"""(stored, a, b, c, d, queries, at, size, out, out_at, out_stride, fresh): for query m, `size` floats at
`at + m * size`, out[out_at + m * out_stride + i] becomes its dot product with the stored vector at the i-th of the
offsets a, b, c, d; unless `fresh`, only if that is larger than what is there."""
dots_2 = _dot_tile(2)
"""`dots_1` for two queries."""
dots_4 = _dot_tile(4)
"""`dots_1` for four queries."""


def _weigh_tile(num_queries: int) -> Callable[..., Any]:
    def weigh(
        _typing: Any, stored: Any, at: Any, count: Any, weights: Any, weights_at: Any, weights_stride: Any, size: Any,
        out: Any, out_at: Any,
    ) -> Any:  # fmt: skip
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kinds = signature.args
            element, size = ELEMENT[kinds[0].dtype], args[6]
            rows = pointer_to(context, builder, kinds[0], args[0], args[1])
            weight = pointer_to(context, builder, kinds[3], args[3], args[4])
            target = pointer_to(context, builder, kinds[7], args[7], args[8])
            steps = [ir.Constant(_I64, m) for m in range(num_queries)]
            weights = [builder.gep(weight, [builder.mul(args[5], step)]) for step in steps]
            sums = [cgutils.alloca_once(builder, WIDE) for _ in range(2 * num_queries)]
            width = ir.Constant(_I64, LANES)
            with cgutils.for_range(builder, builder.sdiv(size, ir.Constant(_I64, 2 * LANES))) as columns:
                left = builder.mul(columns.index, ir.Constant(_I64, 2 * LANES))
                places = [
                    builder.gep(target, [builder.add(builder.mul(size, step), at)])
                    for step in steps
                    for at in (left, builder.add(left, width))
                ]
                for total, place in zip(sums, places, strict=True):
                    builder.store(load_lanes(builder, place, ir.FloatType()), total)
                with cgutils.for_range(builder, args[2]) as row:
                    first = builder.gep(rows, [builder.add(builder.mul(row.index, size), left)])
                    vectors = [
                        load_lanes(builder, pointer, element)
                        for pointer in (first, builder.gep(first, [width]))
                    ]
                    for m, line in enumerate(weights):
                        factor = _splat(builder, builder.load(builder.gep(line, [row.index])))
                        for vector, total in zip(vectors, sums[2 * m : 2 * m + 2], strict=True):
                            product = builder.fmul(vector, factor, flags=("contract",))
                            builder.store(
                                builder.fadd(product, builder.load(total), flags=("contract",)), total
                            )
                for total, place in zip(sums, places, strict=True):
                    builder.store(builder.load(total), builder.bitcast(place, WIDE.as_pointer()), align=4)
            return context.get_dummy_value()

        i = types.int64
        return types.void(stored, i, i, weights, i, i, i, out, i), build

    tile: Callable[..., Any] = intrinsic(weigh)
    return tile


weigh_1 = _weigh_tile(1)
"""(stored, at, count, weights, weights_at, weights_stride, size, out, out_at): for query m, adds the sum over
t < count of weights[weights_at + m * weights_stride + t] * stored[at + t * size : at + (t + 1) * size] to
out[out_at + m * size : out_at + (m + 1) * size]. `size` is a multiple of 2 * LANES."""
weigh_2 = _weigh_tile(2)
"""`weigh_1` for two queries."""
weigh_4 = _weigh_tile(4)
"""`weigh_1` for four queries."""


@intrinsic
def prefetch(_typing: Any, array: Any, offset: Any) -> Any:
    """Asks for the cache line of array[offset] in L2 (into L1, half the bandwidth was lost); any offset is safe."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.bitcast(
            pointer_to(context, builder, signature.args[0], *args), ir.IntType(8).as_pointer()
        )
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, _I32, _I32, _I32])
        hint = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(hint, [pointer, *(ir.Constant(_I32, value) for value in (0, 2, 1))])
        return context.get_dummy_value()

    return types.void(array, types.int64), build


@intrinsic
def copy(_typing: Any, out: Any, out_at: Any, array: Any, at: Any, size: Any) -> Any:
    """out[out_at : out_at + size] = array[at : at + size] by the C library's memcpy."""
    if out.dtype != array.dtype:
        return None

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        into = pointer_to(context, builder, signature.args[0], args[0], args[1])
        source = pointer_to(context, builder, signature.args[2], args[2], args[3])
        cgutils.raw_memcpy(builder, into, source, args[4], signature.args[0].dtype.bitwidth // 8)
        return context.get_dummy_value()

    i = types.int64
    return types.void(out, i, array, i, i), build
