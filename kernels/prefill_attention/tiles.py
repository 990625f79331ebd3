"""Register tiles of attention in LLVM's language: a product of packed operands, and the weights of a row of logits.

Operands are of 4-byte words: a float32, or a pair of bfloat16 whose products are added in one instruction. All
arguments are addresses in bytes and numbers; nothing is checked.
"""

# ruff: noqa: ARG001 - the arguments of an intrinsic are its signature; their values come in `args`.

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.binding
import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16
"""float32 lanes of a vector."""
ROWS = 6
"""Rows of a tile: with WIDTHS[0] vectors of columns the sums fill most registers."""
F32, BF16 = types.float32, types.uint16
"""The types of the argument `like` of a tile, which say what its operands are."""

_FLOAT, _I32, _I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_FLOATS, _WORDS = ir.VectorType(_FLOAT, LANES), ir.VectorType(_I32, LANES)
_FUSED = ("contract",)
_LEAST = -126.0
_EXP2 = (1.5403530393381609e-4, 1.3333558146428443e-3, 9.618129107628477e-3, 5.550410866482158e-2,
         2.402265069591007e-1, 6.931471805599453e-1, 1.0)  # fmt: skip
"""Coefficients of 2**x on [-0.5, 0.5], from the highest power on."""


class _BFloat(ir.Type):  # type: ignore[misc]  # llvmlite has no types
    """bfloat16, which llvmlite does not name."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)

    def _to_string(self) -> str:
        return "bfloat"


_PAIRS = ir.VectorType(_BFloat(), 2 * LANES)


def _host_has(feature: str) -> bool:
    return numba.config.CPU_NAME is None and bool(
        llvmlite.binding.get_host_cpu_features().get(feature, False)
    )


HAS_PAIRS = _host_has("avx512bf16") and _host_has("avx512f")
"""Whether this CPU multiplies pairs of bfloat16."""
WIDTHS = (4, 2, 1) if _host_has("avx512f") else (1,)
"""Vectors of columns that a tile may have."""


def _all(value: float) -> Any:
    return ir.Constant(_FLOATS, [value] * LANES)


def _ints(value: int) -> Any:
    return ir.Constant(_WORDS, [value] * LANES)


def _splat(builder: Any, value: Any, kind: ir.VectorType) -> Any:
    empty = ir.Constant(kind, ir.Undefined)
    lane = builder.insert_element(empty, value, _I32(0))
    return builder.shuffle_vector(lane, empty, ir.Constant(_WORDS, [0] * LANES))


def _at(builder: Any, address: Any, kind: ir.Type) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


def _load(builder: Any, address: Any, kind: ir.Type) -> Any:
    return builder.load(_at(builder, address, kind), align=4)


def _store(builder: Any, vector: Any, address: Any, align: int = 4) -> None:
    builder.store(vector, _at(builder, address, vector.type), align=align)


def _fused(builder: Any, left: Any, right: Any, added: Any) -> Any:
    return builder.fadd(builder.fmul(left, right, flags=_FUSED), added, flags=_FUSED)


def _call(builder: Any, name: str, result: ir.Type, arguments: list[Any]) -> Any:
    kind = ir.FunctionType(result, [each.type for each in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def _multiply(builder: Any, is_pairs: bool, word: Any, column: Any, total: Any) -> Any:
    if not is_pairs:
        return _fused(builder, builder.bitcast(word, _FLOATS), builder.bitcast(column, _FLOATS), total)
    operands = [total, builder.bitcast(word, _PAIRS), builder.bitcast(column, _PAIRS)]
    return _call(builder, "llvm.x86.avx512bf16.dpbf16ps.512", _FLOATS, operands)


def _product_tile(width: int) -> Callable[..., Any]:
    def tile(
        _typing: Any, like: Any, a: Any, a_stride: Any, b: Any, b_stride: Any, count: Any, out: Any,
        out_stride: Any, fresh: Any,
    ) -> Any:  # fmt: skip
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _, a, a_stride, b, b_stride, count, out, out_stride, fresh = args
            is_pairs = signature.args[0] == BF16
            columns = [_I64(4 * LANES * j) for j in range(width)]
            lines = [builder.add(a, builder.mul(a_stride, _I64(i))) for i in range(ROWS)]
            sums = [[cgutils.alloca_once(builder, _FLOATS) for _ in columns] for _ in lines]
            places = [
                [builder.add(builder.add(out, builder.mul(out_stride, _I64(i))), at) for at in columns]
                for i in range(ROWS)
            ]
            for held, into in zip(sums, places, strict=True):
                for total, place in zip(held, into, strict=True):
                    builder.store(builder.select(fresh, _all(0.0), _load(builder, place, _FLOATS)), total)
            with cgutils.for_range(builder, count) as loop:
                step = builder.add(b, builder.mul(b_stride, loop.index))
                vectors = [_load(builder, builder.add(step, at), _WORDS) for at in columns]
                offset = builder.mul(loop.index, _I64(4))
                for line, held in zip(lines, sums, strict=True):
                    word = _splat(builder, _load(builder, builder.add(line, offset), _I32), _WORDS)
                    for vector, total in zip(vectors, held, strict=True):
                        builder.store(_multiply(builder, is_pairs, word, vector, builder.load(total)), total)
            for held, into in zip(sums, places, strict=True):
                for total, place in zip(held, into, strict=True):
                    _store(builder, builder.load(total), place)
            return context.get_dummy_value()

        return types.void(like, *[types.int64] * 7, types.boolean), build

    made: Callable[..., Any] = intrinsic(tile)
    return made


product_4 = _product_tile(4)
"""(like, a, a_stride, b, b_stride, count, out, out_stride, fresh): out[i, c] += the sum over k < count of word k of
row i of `a` times word (k, c) of `b`, for ROWS rows and 4 * LANES columns; unless `fresh`, to what `out` holds."""
product_2 = _product_tile(2)
"""`product_4` of 2 * LANES columns."""
product_1 = _product_tile(1)
"""`product_4` of LANES columns."""


def _exp2(builder: Any, x: Any) -> Any:
    """2**x of a vector, 0 below -126; NaN stays."""
    # Not by adding 1.5 * 2**23: Numba lets sums be reordered here.
    whole = _call(builder, "llvm.roundeven.v16f32", _FLOATS, [x])
    rest, series = builder.fsub(x, whole), _all(_EXP2[0])
    for coefficient in _EXP2[1:]:
        series = _fused(builder, series, rest, _all(coefficient))
    power = builder.shl(builder.fptosi(whole, _WORDS), _ints(23))
    scale = builder.bitcast(builder.add(power, _ints(0x3F800000)), _FLOATS)
    tiny = builder.fcmp_ordered("<", x, _all(_LEAST))
    return builder.select(tiny, _all(0.0), builder.fmul(series, scale))


@intrinsic
def row_peak(_typing: Any, row: Any, vectors: Any) -> Any:
    """The largest of a row of `vectors` * LANES float32; NaN is passed over."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        most = cgutils.alloca_once_value(builder, _all(float("-inf")))
        with cgutils.for_range(builder, args[1]) as loop:
            place = builder.add(args[0], builder.mul(loop.index, _I64(4 * LANES)))
            vector, held = _load(builder, place, _FLOATS), builder.load(most)
            builder.store(builder.select(builder.fcmp_ordered(">", vector, held), vector, held), most)
        return _call(builder, "llvm.vector.reduce.fmax.v16f32", _FLOAT, [builder.load(most)])

    return types.float32(types.int64, types.int64), build


@intrinsic
def row_weights(_typing: Any, like: Any, row: Any, vectors: Any, factor: Any, peak: Any, out: Any) -> Any:
    """2**(factor * logit - peak) of a row of `vectors` * LANES logits into operands at `out`; returns their sum."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, row, vectors, factor, peak, out = args
        is_pairs = signature.args[0] == BF16
        factors, peaks = _splat(builder, factor, _FLOATS), _splat(builder, builder.fneg(peak), _FLOATS)
        total, size = cgutils.alloca_once_value(builder, _all(0.0)), 2 if is_pairs else 4
        with cgutils.for_range(builder, vectors) as loop:
            place = builder.add(row, builder.mul(loop.index, _I64(4 * LANES)))
            weights = _exp2(builder, _fused(builder, _load(builder, place, _FLOATS), factors, peaks))
            builder.store(builder.fadd(builder.load(total), weights), total)
            into = builder.add(out, builder.mul(loop.index, _I64(size * LANES)))
            if is_pairs:
                halves = ir.VectorType(_BFloat(), LANES)
                weights = _call(builder, "llvm.x86.avx512bf16.cvtneps2bf16.512", halves, [weights])
            _store(builder, weights, into, size)
        zero = ir.Constant(_FLOAT, 0.0)
        kind = ir.FunctionType(_FLOAT, [_FLOAT, _FLOATS])
        name = "llvm.vector.reduce.fadd.v16f32"
        reduce = cgutils.get_or_insert_function(builder.module, kind, name)
        return builder.call(reduce, [zero, builder.load(total)], fastmath=("reassoc",))

    i, f = types.int64, types.float32
    return types.float32(like, i, i, f, f, i), build
