"""Products with rows of keys and sums of rows of values that lie scattered in memory, in vectors of 16 lanes.

All arguments of the intrinsics but `like` are addresses in bytes and numbers; nothing is checked. `like` is an array
of the stored type.
"""

# ruff: noqa: ARG001 - the arguments of an intrinsic are its signature; their values come in `args`.

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from moorage.kernels.compiling import njit
from moorage.kernels.numba_flags import INLINE
from moorage.kernels.simd import ELEMENT, TILE
from moorage.kernels.simd_group import lane_sums
from moorage.kernels.simd_lanes import FLOAT, FLOATS, FUSED, HALF, I64, LANES, multiply_add, splat
from moorage.kernels.simd_softmax import load

COLUMNS = 4
"""Vectors of a row of values that are summed at once."""


def _stored(builder: Any, place: Any, element: ir.Type) -> Any:
    """LANES stored elements as float32."""
    kind = ir.VectorType(element, LANES)
    vector = builder.load(builder.inttoptr(place, kind.as_pointer()), align=2 if element == HALF else 4)
    return builder.fpext(vector, FLOATS) if element == HALF else vector


def _addresses(builder: Any, list_at: Any) -> list[Any]:
    """The TILE addresses in a list."""
    return [
        builder.load(builder.inttoptr(builder.add(list_at, I64(8 * r)), I64.as_pointer()), align=8)
        for r in range(TILE)
    ]


def _row_logits(group: int) -> Callable[..., Any]:
    def row_logits(
        _typing: Any, like: Any, rows: Any, bases: Any, offsets: Any, dim: Any, half: Any, rotates: Any, queries: Any,
        out: Any, out_step: Any,
    ) -> Any:  # fmt: skip
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            element = ELEMENT[signature.args[0].dtype]
            _, rows, bases, offsets, dim, half, rotates, queries, out, out_step = args
            size = 2 if element == HALF else 4
            keys, base, offset = (_addresses(builder, each) for each in (rows, bases, offsets))
            lines = [builder.add(queries, builder.mul(dim, I64(4 * m))) for m in range(group)]
            sums = [[cgutils.alloca_once(builder, FLOATS) for _ in range(TILE)] for _ in range(group)]
            for held in sums:
                for total in held:
                    builder.store(ir.Constant(FLOATS, [0.0] * LANES), total)

            def add(r: int, vector: Any, parts: list[Any]) -> None:
                for held, part in zip(sums, parts, strict=True):
                    builder.store(multiply_add(builder, vector, part, builder.load(held[r])), held[r])

            def parts_at(place: Any) -> list[Any]:
                return [
                    load(builder, builder.add(line, builder.mul(place, I64(4))), FLOATS) for line in lines
                ]

            def turn(r: int, place: Any) -> tuple[Any, Any]:
                """(cos, sin) of the angle of a row: that of its block and that within it."""
                at, sine = builder.mul(place, I64(4)), builder.mul(half, I64(4))
                (c, s), (oc, os) = (
                    [
                        load(builder, builder.add(each[r], where), FLOATS)
                        for where in (at, builder.add(at, sine))
                    ]
                    for each in (base, offset)
                )
                minus = builder.fneg(builder.fmul(s, os, flags=FUSED))
                return multiply_add(builder, c, oc, minus), multiply_add(
                    builder, s, oc, builder.fmul(c, os, flags=FUSED)
                )

            width = I64(LANES)
            turned = builder.select(rotates, half, I64(0))
            with cgutils.for_range(builder, builder.udiv(turned, width)) as loop:
                left = builder.mul(loop.index, width)
                right = builder.add(left, half)
                low_parts, high_parts = parts_at(left), parts_at(right)
                for r, key in enumerate(keys):
                    low, high = (
                        _stored(builder, builder.add(key, builder.mul(d, I64(size))), element)
                        for d in (left, right)
                    )
                    c, s = turn(r, left)
                    minus = builder.fneg(builder.fmul(high, s, flags=FUSED))
                    add(r, multiply_add(builder, low, c, minus), low_parts)
                    add(r, multiply_add(builder, high, c, builder.fmul(low, s, flags=FUSED)), high_parts)
            passed = builder.mul(turned, I64(2))
            with cgutils.for_range(builder, builder.udiv(builder.sub(dim, passed), width)) as loop:
                place = builder.add(passed, builder.mul(loop.index, width))
                parts = parts_at(place)
                for r, key in enumerate(keys):
                    add(r, _stored(builder, builder.add(key, builder.mul(place, I64(size))), element), parts)
            for m, held in enumerate(sums):
                found = lane_sums(builder, [builder.load(total) for total in held])
                into = builder.inttoptr(
                    builder.add(out, builder.mul(out_step, I64(m))), found.type.as_pointer()
                )
                builder.store(found, into, align=4)
            return context.get_dummy_value()

        i = types.int64
        return types.void(like, i, i, i, i, i, types.boolean, i, i, i), build

    tile: Callable[..., Any] = intrinsic(row_logits)
    return tile


ROW_LOGITS = tuple(_row_logits(group) for group in range(1, 5))
"""(like, rows, bases, offsets, dim, half, rotates, queries, out, out_step) by the number of queries, 1 to 4: products
of TILE stored rows with each query, TILE float32 from `out` on for each of them.

`rows` is a list of the rows' addresses. Where `rotates`, channels (d, d + half) are rotated by the sum of two
angles, whose `half` cosines and then sines lie at the addresses of `bases` and `offsets`. `dim`, `half` are
multiples of LANES. `queries` are [group, dim] float32; rows of `out` are out_step bytes apart."""


def _row_sums(group: int) -> Callable[..., Any]:
    def row_sums(
        _typing: Any, like: Any, rows: Any, count: Any, dim: Any, weights: Any, weights_step: Any, out: Any
    ) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            element = ELEMENT[signature.args[0].dtype]
            _, rows, count, dim, weights, weights_step, out = args
            size = 2 if element == HALF else 4
            lines = [builder.add(weights, builder.mul(weights_step, I64(m))) for m in range(group)]

            def add_columns(left: Any, vectors: int) -> None:
                columns = [builder.add(left, I64(LANES * j)) for j in range(vectors)]
                places = [
                    builder.add(out, builder.mul(builder.add(builder.mul(dim, I64(m)), column), I64(4)))
                    for m in range(group)
                    for column in columns
                ]
                sums = [cgutils.alloca_once(builder, FLOATS) for _ in places]
                for total, place in zip(sums, places, strict=True):
                    builder.store(load(builder, place, FLOATS), total)
                with cgutils.for_range(builder, count) as row:
                    at = builder.add(rows, builder.mul(row.index, I64(8)))
                    first = builder.load(builder.inttoptr(at, I64.as_pointer()), align=8)
                    values = [
                        _stored(builder, builder.add(first, builder.mul(column, I64(size))), element)
                        for column in columns
                    ]
                    for m, line in enumerate(lines):
                        weight = load(builder, builder.add(line, builder.mul(row.index, I64(4))), FLOAT)
                        factor = splat(builder, weight)
                        for j, value in enumerate(values):
                            total = sums[m * vectors + j]
                            builder.store(multiply_add(builder, value, factor, builder.load(total)), total)
                for total, place in zip(sums, places, strict=True):
                    builder.store(builder.load(total), builder.inttoptr(place, FLOATS.as_pointer()), align=4)

            wide = I64(COLUMNS * LANES)
            most = builder.udiv(dim, wide)
            with cgutils.for_range(builder, most) as loop:
                add_columns(builder.mul(loop.index, wide), COLUMNS)
            done = builder.mul(most, wide)
            rest = builder.udiv(builder.sub(dim, done), I64(LANES))
            with cgutils.for_range(builder, rest) as loop:
                add_columns(builder.add(done, builder.mul(loop.index, I64(LANES))), 1)
            return context.get_dummy_value()

        i = types.int64
        return types.void(like, i, i, i, i, i, i), build

    tile: Callable[..., Any] = intrinsic(row_sums)
    return tile


ROW_SUMS = tuple(_row_sums(group) for group in range(1, 5))
"""(like, rows, count, dim, weights, weights_step, out) by the number of queries, 1 to 4: adds to out [group, dim]
float32 the sum over the `count` stored rows, whose addresses are listed at `rows`, each times its weight. The weights
of a query are `count` float32, those of the next weights_step bytes after them."""
_LOGITS_1, _LOGITS_2, _LOGITS_3, _LOGITS_4 = ROW_LOGITS
_SUMS_1, _SUMS_2, _SUMS_3, _SUMS_4 = ROW_SUMS


@njit(**INLINE)
def row_logits(
    like: Any, group: Any, rows: Any, bases: Any, offsets: Any, dim: Any, half: Any, rotates: Any, queries: Any,
    out: Any, step: Any,
) -> None:  # fmt: skip
    """`ROW_LOGITS` for any number of queries."""
    for done in range(0, group, 4):
        left, query, into = group - done, queries + 4 * done * dim, out + done * step
        if left >= 4:
            _LOGITS_4(like, rows, bases, offsets, dim, half, rotates, query, into, step)
        elif left == 3:
            _LOGITS_3(like, rows, bases, offsets, dim, half, rotates, query, into, step)
        elif left == 2:
            _LOGITS_2(like, rows, bases, offsets, dim, half, rotates, query, into, step)
        else:
            _LOGITS_1(like, rows, bases, offsets, dim, half, rotates, query, into, step)


@njit(**INLINE)
def row_sums(
    like: Any, group: Any, rows: Any, count: Any, dim: Any, weights: Any, step: Any, out: Any
) -> None:
    """`ROW_SUMS` for any number of queries."""
    for done in range(0, group, 4):
        left, weight, into = group - done, weights + done * step, out + 4 * done * dim
        if left >= 4:
            _SUMS_4(like, rows, count, dim, weight, step, into)
        elif left == 3:
            _SUMS_3(like, rows, count, dim, weight, step, into)
        elif left == 2:
            _SUMS_2(like, rows, count, dim, weight, step, into)
        else:
            _SUMS_1(like, rows, count, dim, weight, step, into)
