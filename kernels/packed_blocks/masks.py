"""Comparisons of many lanes at once, as the bits of an integer. Arrays are flat; places are not checked."""

# ruff: noqa: ARG001 - the arguments of an intrinsic are its signature; their values come in `args`.

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from moorage.kernels.simd_lanes import I8, I16, I32, I64, LANES, all_lanes, call

LINE_SHORTS = 32
"""Numbers of 16 bits in a cache line."""
_SHORTS, _WORD = ir.VectorType(I16, LINE_SHORTS), ir.IntType(32)


def _lanes_at(context: Any, builder: Any, kind: Any, array: Any, at: Any, element: ir.Type) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    pointer = builder.bitcast(builder.gep(data, [at]), ir.VectorType(element, LANES).as_pointer())
    return builder.load(pointer, align=1)


@intrinsic
def third_bits(_typing: Any, codes: Any, at: Any) -> Any:
    """Bit i is the third bit of the code codes[at + i]; LANES codes below 8 are read."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lanes = _lanes_at(context, builder, signature.args[0], args[0], args[1], I8)
        return builder.bitcast(builder.icmp_unsigned(">", lanes, all_lanes(I8, 3)), I16)

    return types.uint16(codes, types.int64), build


@intrinsic
def shorts_below(_typing: Any, line: Any, low: Any, high: Any, limit: Any) -> Any:
    """How many of the uint16 number `low` to `high` - 1 of the cache line at an address are below a limit."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        line, low, high, limit = args
        lane = builder.insert_element(ir.Constant(_SHORTS, ir.Undefined), builder.trunc(limit, I16), I32(0))
        limits = builder.shuffle_vector(
            lane, lane, ir.Constant(ir.VectorType(_WORD, LINE_SHORTS), [0] * LINE_SHORTS)
        )
        shorts = builder.load(builder.inttoptr(line, _SHORTS.as_pointer()), align=64)
        below = builder.zext(builder.bitcast(builder.icmp_unsigned("<", shorts, limits), _WORD), I64)
        # Shifts of 64-bit numbers: `high` may be all LINE_SHORTS.
        before_high = builder.sub(builder.shl(I64(1), high), I64(1))
        from_low = builder.not_(builder.sub(builder.shl(I64(1), low), I64(1)))
        return call(
            builder, "llvm.ctpop.i64", I64, [builder.and_(builder.and_(below, before_high), from_low)]
        )

    return types.int64(*[types.int64] * 4), build
