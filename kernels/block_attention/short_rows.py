"""Rows of float32 beside int16 products: weights of a softmax, sums of values, columns of four queries.

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

from moorage.kernels.packed_blocks.short_operands import LEVEL_ONE, MOST_WEIGHTS, TINY
from moorage.kernels.packed_blocks.short_units import accumulated_channels
from moorage.kernels.simd_lanes import FLOAT, I32, I64, multiply_add
from moorage.kernels.simd_softmax import exp2
from moorage.kernels.simd_words import (
    all_floats,
    constant,
    load,
    load_one,
    offset,
    pick,
    splat,
    store,
    to_shorts,
)

TILE_ROWS = 64
"""Rows of keys or values that are unpacked and multiplied at once."""


def _total(builder: Any, vectors: list[Any]) -> Any:
    """The sum of all lanes of vectors of 16 float32."""
    while len(vectors) > 1:
        vectors = [builder.fadd(*vectors[at : at + 2]) for at in range(0, len(vectors), 2)]
    kind = ir.FunctionType(FLOAT, [FLOAT, vectors[0].type])
    reduce = cgutils.get_or_insert_function(builder.module, kind, "llvm.vector.reduce.fadd.v16f32")
    return builder.call(reduce, [FLOAT(0.0), vectors[0]], fastmath=("reassoc",))


def _row_shares(vectors: int) -> Callable[..., Any]:
    def shares(
        _typing: Any, row: Any, factor: Any, peak: Any, scales: Any, zeros: Any, middle: Any, span: Any, out: Any,
        found: Any,
    ) -> Any:  # fmt: skip
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            row, factor, peak, scales, zeros, middle, span, out, found = args
            factors, peaks = splat(builder, factor, 16), splat(builder, builder.fneg(peak), 16)
            weights, products, added = [], [], []
            for first in range(0, 64 * vectors, 64):
                place = offset(builder, row, first)
                exponent = multiply_add(builder, load(builder, place, FLOAT, 16), factors, peaks)
                weight = exp2(builder, exponent)
                store(builder, weight, place)
                weights.append(weight)
                products.append(
                    builder.fmul(weight, load(builder, offset(builder, scales, first), FLOAT, 16))
                )
                added.append(builder.fmul(weight, load(builder, offset(builder, zeros, first), FLOAT, 16)))
            scaled = _total(builder, products)
            is_tiny = builder.fcmp_ordered("<", scaled, FLOAT(TINY))
            up = builder.select(is_tiny, FLOAT(0.0), builder.fdiv(FLOAT(MOST_WEIGHTS), scaled))
            for at in range(0, vectors, 2):
                both = pick(builder, products[at], products[at + 1], list(range(32)))
                shorts = to_shorts(builder, builder.fmul(both, splat(builder, up, 32)))
                store(builder, shorts, offset(builder, out, 32 * at))
            middles = builder.fadd(_total(builder, added), builder.fmul(scaled, middle))
            down = builder.fmul(builder.fmul(scaled, span), FLOAT(1 / (MOST_WEIGHTS * LEVEL_ONE)))
            for at, number in enumerate((_total(builder, weights), middles, down)):
                place = builder.inttoptr(offset(builder, found, 4 * at), FLOAT.as_pointer())
                builder.store(number, place, align=4)
            return context.get_dummy_value()

        i, f = types.int64, types.float32
        return types.void(i, f, f, i, i, f, f, i, i), build

    made: Callable[..., Any] = intrinsic(shares)
    return made


row_shares_32, row_shares_64 = _row_shares(2), _row_shares(4)
"""(row, factor, peak, scales, zeros, middle, span, out, found): weights 2**(factor * logit - peak) of a row of
logits in their place, and as int16 for sums of int16 levels. scales, zeros: float32 of as many rows of values. To
`found`: the sum of the weights, the weighted sum of what the middle of all levels stands for, and what a sum of
int16 weights * int16 levels is to be multiplied by."""


@intrinsic
def end_row(_typing: Any, row: Any, count: Any, vectors: Any) -> Any:
    """-inf in a row of `vectors` * 16 float32 from number `count` on."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        row, count, vectors = args
        limit, least = splat(builder, builder.trunc(count, I32), 16), all_floats(float("-inf"), 16)
        with cgutils.for_range(builder, vectors) as loop:
            place = builder.add(row, builder.mul(loop.index, I64(64)))
            first = splat(builder, builder.trunc(builder.mul(loop.index, I64(16)), I32), 16)
            is_seen = builder.icmp_signed("<", builder.add(first, constant(list(range(16)), I32)), limit)
            store(builder, builder.select(is_seen, load(builder, place, FLOAT, 16), least), place)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), build


@intrinsic
def scale_row(_typing: Any, row: Any, vectors: Any, factor: Any) -> Any:
    """Multiplies a row of `vectors` * 16 float32."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        row, vectors, factor = args
        factors = splat(builder, factor, 16)
        with cgutils.for_range(builder, vectors) as loop:
            place = builder.add(row, builder.mul(loop.index, I64(64)))
            store(builder, builder.fmul(load(builder, place, FLOAT, 16), factors), place)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.float32), build


@intrinsic
def scale_column(_typing: Any, columns: Any, vectors: Any, column: Any, factor: Any) -> Any:
    """Multiplies one of four columns of `vectors` * 4 rows of float32."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        columns, vectors, column, factor = args
        own = splat(builder, builder.trunc(column, I32), 16)
        is_own = builder.icmp_unsigned("==", own, constant([lane % 4 for lane in range(16)], I32))
        factors = builder.select(is_own, splat(builder, factor, 16), all_floats(1.0, 16))
        with cgutils.for_range(builder, vectors) as loop:
            place = builder.add(columns, builder.mul(loop.index, I64(64)))
            store(builder, builder.fmul(load(builder, place, FLOAT, 16), factors), place)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3, types.float32), build


@intrinsic
def clear_row(_typing: Any, row: Any, vectors: Any) -> Any:
    """Zeros for a row of `vectors` * 16 float32."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        with cgutils.for_range(builder, args[1]) as loop:
            store(builder, all_floats(0.0, 16), builder.add(args[0], builder.mul(loop.index, I64(64))))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), build


def _add_summed(dim: int) -> Callable[..., Any]:
    order = accumulated_channels(dim)
    numbers = [order.index(channel) for channel in range(dim)]

    def add(_typing: Any, sums: Any, extras: Any, column: Any, middle: Any, out: Any) -> Any:
        def build(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            sums, extras, column, middle, out = args
            own = builder.add(extras, builder.mul(column, I64(4)))
            held = load(builder, sums, FLOAT, dim)
            for first in range(0, dim, 16):
                lanes = pick(builder, held, held, numbers[first : first + 16])
                place = offset(builder, out, 4 * first)
                total = builder.fadd(
                    builder.fadd(load(builder, place, FLOAT, 16), lanes), splat(builder, middle, 16)
                )
                columns = load(builder, offset(builder, own, 16 * first), FLOAT, 64)
                more = pick(builder, columns, columns, list(range(0, 64, 4)))
                store(builder, builder.fadd(total, more), place)
            return context.get_dummy_value()

        i = types.int64
        return types.void(i, i, i, types.float32, i), build

    made: Callable[..., Any] = intrinsic(add)
    return made


add_summed_64, add_summed_128 = (_add_summed(dim) for dim in (64, 128))
"""(sums, extras, column, middle, out): adds to float32 [D] sums in the order of `accumulated_channels`, one of four
columns of extras, float32 [D, 4], and a number for all channels."""


def _transpose(dim: int) -> Callable[..., Any]:
    def transpose(_typing: Any, rows: Any, out: Any) -> Any:
        def build(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            rows, out = args
            with cgutils.for_range(builder, I64(dim // 16)) as loop:
                place = builder.add(rows, builder.mul(loop.index, I64(64)))
                parts = [load(builder, offset(builder, place, 4 * dim * m), FLOAT, 16) for m in range(4)]
                joined = [pick(builder, parts[at], parts[at + 1], list(range(32))) for at in (0, 2)]
                lanes = [i + 16 * m for i in range(16) for m in range(4)]
                into = builder.add(out, builder.mul(loop.index, I64(256)))
                store(builder, pick(builder, joined[0], joined[1], lanes), into)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), build

    made: Callable[..., Any] = intrinsic(transpose)
    return made


transpose_64, transpose_128 = (_transpose(dim) for dim in (64, 128))
"""(rows, out): four rows of so many float32 as columns: out [D, 4]."""


@intrinsic
def add_columns(_typing: Any, columns: Any, out: Any) -> Any:
    """Adds columns, float32 [TILE_ROWS, 4], to four rows of TILE_ROWS float32."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        columns, out = args
        for first in range(0, TILE_ROWS, 16):
            vector = load(builder, offset(builder, columns, 16 * first), FLOAT, 64)
            for m in range(4):
                place = offset(builder, out, 4 * (TILE_ROWS * m + first))
                row = pick(builder, vector, vector, list(range(m, 64, 4)))
                store(builder, builder.fadd(load(builder, place, FLOAT, 16), row), place)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), build


@intrinsic
def add_two_scaled(_typing: Any, left: Any, by_left: Any, right: Any, by_right: Any, out: Any) -> Any:
    """out += left * by_left + right * by_right, each four float32."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        left, by_left, right, by_right, out = args
        total = load(builder, out, FLOAT, 4)
        for vector, factor in ((left, by_left), (right, by_right)):
            total = multiply_add(builder, load(builder, vector, FLOAT, 4), splat(builder, factor, 4), total)
        store(builder, total, out)
        return context.get_dummy_value()

    i, f = types.int64, types.float32
    return types.void(i, f, i, f, i), build


@intrinsic
def add_weighted(_typing: Any, weights: Any, factor: Any, out: Any) -> Any:
    """out += weights * factor, of four float32; the weights lie TILE_ROWS float32 apart."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        weights, factor, out = args
        column = ir.Constant(ir.VectorType(FLOAT, 4), ir.Undefined)
        for m in range(4):
            number = load_one(builder, offset(builder, weights, 4 * TILE_ROWS * m), FLOAT)
            column = builder.insert_element(column, number, I32(m))
        total = multiply_add(builder, column, splat(builder, factor, 4), load(builder, out, FLOAT, 4))
        store(builder, total, out)
        return context.get_dummy_value()

    return types.void(types.int64, types.float32, types.int64), build
