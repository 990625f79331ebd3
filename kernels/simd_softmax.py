"""The weights of a softmax row by row, in vectors of 16 lanes.

All arguments of the intrinsics are addresses in bytes and numbers; nothing is checked.
"""

# ruff: noqa: ARG001 - the arguments of an intrinsic are its signature; their values come in `args`.

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from moorage.kernels.simd_lanes import (
    FLOAT,
    FLOATS,
    I32,
    I64,
    LANES,
    WORDS,
    all_lanes,
    call,
    multiply_add,
    splat,
)

F32, BF16 = types.float32, types.uint16
"""The types of the argument `like`, which say what is written."""

_LEAST = -126.0
_EXP2 = (1.5403530393381609e-4, 1.3333558146428443e-3, 9.618129107628477e-3, 5.550410866482158e-2,
         2.402265069591007e-1, 6.931471805599453e-1, 1.0)  # fmt: skip
"""Coefficients of 2**x on [-0.5, 0.5], from the highest power on."""


class BFloat(ir.Type):  # type: ignore[misc]  # llvmlite has no types
    """bfloat16, which llvmlite does not name."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BFloat)

    def __hash__(self) -> int:
        return hash(BFloat)

    def _to_string(self) -> str:
        return "bfloat"


def _at(builder: Any, address: Any, kind: ir.Type) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


def load(builder: Any, address: Any, kind: ir.Type) -> Any:
    """What lies at an address of whole words."""
    return builder.load(_at(builder, address, kind), align=4)


def store(builder: Any, vector: Any, address: Any, align: int = 4) -> None:
    """Stores a vector at an address that is a multiple of `align` bytes."""
    builder.store(vector, _at(builder, address, vector.type), align=align)


def exp2(builder: Any, x: Any) -> Any:
    """2**x of a vector, 0 below -126; NaN stays."""
    # Not by adding 1.5 * 2**23: Numba lets sums be reordered here.
    whole = call(builder, "llvm.roundeven.v16f32", FLOATS, [x])
    rest, series = builder.fsub(x, whole), all_lanes(FLOAT, _EXP2[0])
    for coefficient in _EXP2[1:]:
        series = multiply_add(builder, series, rest, all_lanes(FLOAT, coefficient))
    power = builder.shl(builder.fptosi(whole, WORDS), all_lanes(I32, 23))
    scale = builder.bitcast(builder.add(power, all_lanes(I32, 0x3F800000)), FLOATS)
    tiny = builder.fcmp_ordered("<", x, all_lanes(FLOAT, _LEAST))
    return builder.select(tiny, all_lanes(FLOAT, 0.0), builder.fmul(series, scale))


@intrinsic
def row_peak(_typing: Any, row: Any, vectors: Any) -> Any:
    """The largest of a row of `vectors` * LANES float32; NaN is passed over."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        most = cgutils.alloca_once_value(builder, all_lanes(FLOAT, float("-inf")))
        with cgutils.for_range(builder, args[1]) as loop:
            place = builder.add(args[0], builder.mul(loop.index, I64(4 * LANES)))
            vector, held = load(builder, place, FLOATS), builder.load(most)
            builder.store(builder.select(builder.fcmp_ordered(">", vector, held), vector, held), most)
        kind = ir.FunctionType(FLOAT, [FLOATS])
        reduce = cgutils.get_or_insert_function(builder.module, kind, "llvm.vector.reduce.fmax.v16f32")
        # No lane is NaN here; unless LLVM knows that, it compares lane after lane.
        return builder.call(reduce, [builder.load(most)], fastmath=("nnan",))

    return types.float32(types.int64, types.int64), build


@intrinsic
def row_weights(_typing: Any, like: Any, row: Any, vectors: Any, factor: Any, peak: Any, out: Any) -> Any:
    """2**(factor * logit - peak) of a row of `vectors` * LANES logits into operands at `out`; returns their sum."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, row, vectors, factor, peak, out = args
        is_pairs = signature.args[0] == BF16
        factors, peaks = splat(builder, factor), splat(builder, builder.fneg(peak))
        total, size = cgutils.alloca_once_value(builder, all_lanes(FLOAT, 0.0)), 2 if is_pairs else 4
        with cgutils.for_range(builder, vectors) as loop:
            place = builder.add(row, builder.mul(loop.index, I64(4 * LANES)))
            weights = exp2(builder, multiply_add(builder, load(builder, place, FLOATS), factors, peaks))
            builder.store(builder.fadd(builder.load(total), weights), total)
            into = builder.add(out, builder.mul(loop.index, I64(size * LANES)))
            if is_pairs:
                halves = ir.VectorType(BFloat(), LANES)
                weights = call(builder, "llvm.x86.avx512bf16.cvtneps2bf16.512", halves, [weights])
            store(builder, weights, into, size)
        zero = ir.Constant(FLOAT, 0.0)
        kind = ir.FunctionType(FLOAT, [FLOAT, FLOATS])
        name = "llvm.vector.reduce.fadd.v16f32"
        reduce = cgutils.get_or_insert_function(builder.module, kind, name)
        return builder.call(reduce, [zero, builder.load(total)], fastmath=("reassoc",))

    i, f = types.int64, types.float32
    return types.float32(like, i, i, f, f, i), build
