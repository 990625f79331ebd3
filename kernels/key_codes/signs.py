"""The signs of a Hadamard-transformed row of float32, in vectors of 16 lanes.

A butterfly between lanes of one vector is a shuffle and a sum, and a comparison of a vector becomes 16 bits in one
instruction; as plain loops neither is found.
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
    FUSED,
    I8,
    I16,
    I64,
    LANES,
    WORDS,
    all_lanes,
    call,
)

_STEPS = (1, 2, 4, 8)
"""Distances of the butterflies between lanes of one vector."""


def _butterfly(builder: Any, vector: Any, step: int) -> Any:
    """Lane i and lane i ^ step become their sum, at the lower place, and their difference."""
    other = builder.shuffle_vector(vector, vector, ir.Constant(WORDS, [lane ^ step for lane in range(LANES)]))
    signs = ir.Constant(FLOATS, [-1.0 if lane & step else 1.0 for lane in range(LANES)])
    return builder.fadd(builder.fmul(vector, signs, flags=FUSED), other, flags=FUSED)


@intrinsic
def pair_vectors(_typing: Any, row: Any, count: Any, step: Any) -> Any:
    """Butterflies between vectors: `count` vectors of `row`, those `step` vectors apart, in place.

    `count` is a multiple of 2 * `step`.
    """

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        base = context.make_array(signature.args[0])(context, builder, args[0]).data
        count, step = args[1:]
        width = I64(LANES)

        def vector_at(place: Any) -> Any:
            return builder.bitcast(builder.gep(base, [builder.mul(place, width)]), FLOATS.as_pointer())

        twice = builder.shl(step, I64(1))
        with cgutils.for_range(builder, builder.udiv(count, twice)) as runs:
            first = builder.mul(runs.index, twice)
            with cgutils.for_range(builder, step) as pairs:
                left = vector_at(builder.add(first, pairs.index))
                right = vector_at(builder.add(builder.add(first, pairs.index), step))
                low, high = builder.load(left, align=4), builder.load(right, align=4)
                builder.store(builder.fadd(low, high), left, align=4)
                builder.store(builder.fsub(low, high), right, align=4)
        return context.get_dummy_value()

    return types.void(row, types.int64, types.int64), build


@intrinsic
def store_signs(
    _typing: Any, row: Any, count: Any, run: Any, bits: Any, at: Any, stride: Any, planes: Any
) -> Any:
    """Does the butterflies of steps below `run` within each of `count` vectors, and stores the signs of all lanes.

    A sign is 1 where a channel is at least 0. Those of channels 8 p to 8 p + 7 become the byte bits[at + p * stride],
    for p < `planes`. Returns the sum of the absolute values.
    """

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kinds = signature.args
        source = context.make_array(kinds[0])(context, builder, args[0]).data
        target = context.make_array(kinds[3])(context, builder, args[3]).data
        _, count, run, _, at, stride, planes = args
        total = cgutils.alloca_once_value(builder, all_lanes(FLOAT, 0.0))
        held = cgutils.alloca_once(builder, FLOATS)
        with cgutils.for_range(builder, count) as loop:
            place = builder.gep(source, [builder.mul(loop.index, I64(LANES))])
            builder.store(builder.load(builder.bitcast(place, FLOATS.as_pointer()), align=4), held)
            for step in _STEPS:
                with builder.if_then(builder.icmp_unsigned(">", run, I64(step))):
                    builder.store(_butterfly(builder, builder.load(held), step), held)
            vector = builder.load(held)
            size = call(builder, "llvm.fabs.v16f32", FLOATS, [vector])
            builder.store(builder.fadd(builder.load(total), size), total)
            signs = builder.bitcast(builder.fcmp_ordered(">=", vector, all_lanes(FLOAT, 0.0)), I16)
            plane = builder.shl(loop.index, I64(1))
            into = builder.gep(target, [builder.add(at, builder.mul(plane, stride))])
            builder.store(builder.trunc(signs, I8), into, align=1)
            with builder.if_then(builder.icmp_unsigned("<", builder.add(plane, I64(1)), planes)):
                upper = builder.trunc(builder.lshr(signs, I16(8)), I8)
                builder.store(upper, builder.gep(into, [stride]), align=1)
        kind = ir.FunctionType(FLOAT, [FLOAT, FLOATS])
        reduce = cgutils.get_or_insert_function(builder.module, kind, "llvm.vector.reduce.fadd.v16f32")
        return builder.call(reduce, [ir.Constant(FLOAT, 0.0), builder.load(total)], fastmath=("reassoc",))

    i = types.int64
    return types.float32(row, i, i, bits, i, i, i), build
