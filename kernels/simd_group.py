"""Register tiles of a group of queries with stored rows, in vectors of 16 lanes.

Rows are widened and rotated in registers, once for up to four queries. Arrays are flat; offsets and sizes are in
elements and are not checked.
"""

# ruff: noqa: ARG001 - the arguments of an intrinsic are its signature; their values come in `args`.

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from moorage.kernels.simd import ELEMENT, LINE_BYTES, TILE, pointer_to
from moorage.kernels.simd_lanes import FLOAT, FLOATS, FUSED, I8, I32, I64, LANES, call, multiply_add, splat

WIDE_LANES = LANES
"""Head sizes and half the rotated channels must be a multiple of this."""


def load_wide(builder: Any, pointer: Any, element: ir.Type) -> Any:
    """WIDE_LANES elements as float32."""
    typed = builder.bitcast(pointer, ir.VectorType(element, WIDE_LANES).as_pointer())
    vector = builder.load(typed, align=2 if element == ir.HalfType() else 4)
    return builder.fpext(vector, FLOATS) if element == ir.HalfType() else vector


def unless_none(kind: Any) -> Any:
    """The type of an offset of what is asked for ahead, of which there may be none."""
    return kind if kind == types.none else types.int64


def prefetch_row(builder: Any, pointer: Any, dim: int) -> None:
    """Asks for the cache lines of `dim` elements in L2; any pointer is safe."""
    line = LINE_BYTES // (2 if pointer.type.pointee == ir.HalfType() else 4)

    for d in range(0, dim, line):
        target = builder.bitcast(builder.gep(pointer, [I64(d)]), I8.as_pointer())
        call(builder, "llvm.prefetch.p0", ir.VoidType(), [target, I32(0), I32(2), I32(1)])


def _pick(builder: Any, left: Any, right: Any, lanes: list[int]) -> Any:
    return builder.shuffle_vector(left, right, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))


def _halved(builder: Any, left: Any, right: Any) -> Any:
    """In each four lanes: the sums of neighbouring lanes of `left`, then those of `right`."""
    lanes = [base + place for base in range(0, WIDE_LANES, 4) for place in (0, 2, WIDE_LANES, WIDE_LANES + 2)]
    even, odd = (_pick(builder, left, right, [lane + by for lane in lanes]) for by in (0, 1))
    return builder.fadd(even, odd)


def _quarter_sums(builder: Any, vectors: list[Any]) -> Any:
    """In each four lanes: the sums over these four lanes of each of TILE vectors."""
    return _halved(builder, _halved(builder, *vectors[:2]), _halved(builder, *vectors[2:]))


def lane_sums(builder: Any, vectors: list[Any]) -> Any:
    """Four lanes: the sum of each of TILE vectors."""
    found, width = _quarter_sums(builder, vectors), WIDE_LANES
    while width > TILE:
        width //= 2
        low, high = (_pick(builder, found, found, list(range(at, at + width))) for at in (0, width))
        found = builder.fadd(low, high)
    return found


def _dot_tile(num_queries: int) -> Callable[..., Any]:
    def dots(
        _typing: Any, stored: Any, at: Any, last: Any, dim: Any, cos: Any, sin: Any, turn_at: Any, turn_last: Any,
        half: Any, rotates: Any, queries: Any, query_at: Any, out: Any, out_at: Any, out_stride: Any,
    ) -> Any:  # fmt: skip
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kinds, element = signature.args, ELEMENT[signature.args[0].dtype]
            _, at, last, dim, _, _, turn_at, turn_last, half, rotates, _, query_at, _, out_at, stride = args

            def pointers(index: int, begin: Any, end: Any, step: Any) -> list[Any]:
                found = []
                for r in range(TILE):
                    place = builder.add(begin, builder.mul(step, I64(r)))
                    place = builder.select(builder.icmp_signed("<", place, end), place, end)
                    found.append(pointer_to(context, builder, kinds[index], args[index], place))
                return found

            rows = pointers(0, at, last, dim)
            cosines, sines = (pointers(i, turn_at, turn_last, half) for i in (4, 5))
            query = pointer_to(context, builder, kinds[10], args[10], query_at)
            lines = [builder.gep(query, [builder.mul(dim, I64(m))]) for m in range(num_queries)]
            sums = [[cgutils.alloca_once(builder, FLOATS) for _ in rows] for _ in lines]
            for held in sums:
                for total in held:
                    builder.store(ir.Constant(FLOATS, [0.0] * WIDE_LANES), total)

            def add(r: int, vector: Any, parts: list[Any]) -> None:
                for held, part in zip(sums, parts, strict=True):
                    builder.store(multiply_add(builder, vector, part, builder.load(held[r])), held[r])

            def parts_at(place: Any) -> list[Any]:
                return [load_wide(builder, builder.gep(line, [place]), FLOAT) for line in lines]

            width, none = I64(WIDE_LANES), I64(0)
            turned = builder.select(rotates, half, none)
            with cgutils.for_range(builder, builder.udiv(turned, width)) as loop:
                left = builder.mul(loop.index, width)
                right = builder.add(left, half)
                low_parts, high_parts = parts_at(left), parts_at(right)
                for r, row in enumerate(rows):
                    low, high = (load_wide(builder, builder.gep(row, [d]), element) for d in (left, right))
                    c, s = (load_wide(builder, builder.gep(t[r], [left]), FLOAT) for t in (cosines, sines))
                    minus = builder.fneg(builder.fmul(high, s, flags=FUSED))
                    add(r, multiply_add(builder, low, c, minus), low_parts)
                    add(r, multiply_add(builder, high, c, builder.fmul(low, s, flags=FUSED)), high_parts)
            passed = builder.mul(turned, I64(2))
            with cgutils.for_range(builder, builder.udiv(builder.sub(dim, passed), width)) as loop:
                place = builder.add(passed, builder.mul(loop.index, width))
                parts = parts_at(place)
                for r, row in enumerate(rows):
                    add(r, load_wide(builder, builder.gep(row, [place]), element), parts)
            target = pointer_to(context, builder, kinds[12], args[12], out_at)
            for m, held in enumerate(sums):
                found = lane_sums(builder, [builder.load(total) for total in held])
                into = builder.gep(target, [builder.mul(stride, I64(m))])
                builder.store(found, builder.bitcast(into, found.type.as_pointer()), align=4)
            return context.get_dummy_value()

        i = types.int64
        kinds = (stored, i, i, i, cos, sin, i, i, i, types.boolean, queries, i, out, i, i)
        return types.void(*kinds), build

    tile: Callable[..., Any] = intrinsic(dots)
    return tile


group_dots_1 = _dot_tile(1)
"""(stored, at, last, dim, cos, sin, turn_at, turn_last, half, rotates, queries, query_at, out, out_at, out_stride):
out[out_at + m * out_stride + i] = the query at query_at + m * dim times row i of TILE stored rows from `at` on.

Rows behind the one at `last` are that one again. Where `rotates`, channels (d, d + half) of row i are rotated by
`half` elements of cos and sin from turn_at + i * half on, at most from turn_last on."""
group_dots_2 = _dot_tile(2)
"""`group_dots_1` for two queries."""
group_dots_3 = _dot_tile(3)
"""`group_dots_1` for three queries."""
group_dots_4 = _dot_tile(4)
"""`group_dots_1` for four queries."""


def _weigh_tile(num_queries: int) -> Callable[..., Any]:
    def weigh(
        _typing: Any, stored: Any, at: Any, count: Any, ahead: Any, dim: Any, weights: Any, weights_at: Any,
        weights_stride: Any, out: Any, out_at: Any,
    ) -> Any:  # fmt: skip
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kinds, element = signature.args, ELEMENT[signature.args[0].dtype]
            _, at, count, ahead, dim, _, weights_at, stride, _, out_at = args
            rows = pointer_to(context, builder, kinds[0], args[0], at)
            weight = pointer_to(context, builder, kinds[5], args[5], weights_at)
            target = pointer_to(context, builder, kinds[8], args[8], out_at)
            lines = [builder.gep(weight, [builder.mul(stride, I64(m))]) for m in range(num_queries)]

            def add_columns(left: Any, vectors: int) -> None:
                columns = [builder.add(left, I64(WIDE_LANES * j)) for j in range(vectors)]
                places = [
                    builder.gep(target, [builder.add(builder.mul(dim, I64(m)), column)])
                    for m in range(num_queries)
                    for column in columns
                ]
                sums = [cgutils.alloca_once(builder, FLOATS) for _ in places]
                for total, place in zip(sums, places, strict=True):
                    builder.store(load_wide(builder, place, FLOAT), total)
                with cgutils.for_range(builder, count) as row:
                    first = builder.gep(rows, [builder.mul(row.index, dim)])
                    if kinds[3] != types.none:
                        coming = builder.gep(first, [builder.add(left, ahead)])
                        prefetch_row(builder, coming, vectors * WIDE_LANES)
                    values = [load_wide(builder, builder.gep(first, [column]), element) for column in columns]
                    for m, line in enumerate(lines):
                        factor = splat(builder, builder.load(builder.gep(line, [row.index])))
                        for j, value in enumerate(values):
                            total = sums[m * vectors + j]
                            builder.store(multiply_add(builder, value, factor, builder.load(total)), total)
                for total, place in zip(sums, places, strict=True):
                    builder.store(builder.load(total), builder.bitcast(place, FLOATS.as_pointer()), align=4)

            wide = I64(4 * WIDE_LANES)
            most = builder.udiv(dim, wide)
            with cgutils.for_range(builder, most) as loop:
                add_columns(builder.mul(loop.index, wide), 4)
            done = builder.mul(most, wide)
            rest = builder.udiv(builder.sub(dim, done), I64(WIDE_LANES))
            with cgutils.for_range(builder, rest) as loop:
                add_columns(builder.add(done, builder.mul(loop.index, I64(WIDE_LANES))), 1)
            return context.get_dummy_value()

        i = types.int64
        return types.void(stored, i, i, unless_none(ahead), i, weights, i, i, out, i), build

    tile: Callable[..., Any] = intrinsic(weigh)
    return tile


group_weigh_1 = _weigh_tile(1)
"""(stored, at, count, ahead, dim, weights, weights_at, weights_stride, out, out_at): for query m, adds the sum over
t < count of weights[weights_at + m * weights_stride + t] times row t from `at` on to `dim` elements of out from
out_at + m * dim on. What lies `ahead` elements after each row is asked for, unless it is None."""
group_weigh_2 = _weigh_tile(2)
"""`group_weigh_1` for two queries."""
group_weigh_3 = _weigh_tile(3)
"""`group_weigh_1` for three queries."""
group_weigh_4 = _weigh_tile(4)
"""`group_weigh_1` for four queries."""
