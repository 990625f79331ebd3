"""The signs of a Hadamard-transformed row of float32, in vectors of 16 lanes.

A butterfly between lanes of one vector is a shuffle and a sum, and a comparison of a vector becomes 16 bits in one
instruction; as plain loops neither is found. Rows of 64, 128 and 256 channels stay in registers throughout.
"""

# ruff: noqa: ARG001 - the arguments of an intrinsic are its signature; their values come in `args`.

from __future__ import annotations

from collections.abc import Callable
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


def _data(context: Any, builder: Any, signature: Any, args: Any, place: int, at: Any) -> Any:
    """A pointer to element `at` of an array argument."""
    array = context.make_array(signature.args[place])(context, builder, args[place])
    return builder.gep(array.data, [at])


def _vector_at(builder: Any, base: Any, place: Any) -> Any:
    """A pointer to vector `place` from `base` on."""
    return builder.bitcast(builder.gep(base, [builder.mul(place, I64(LANES))]), FLOATS.as_pointer())


def _store_lanes(
    builder: Any, vector: Any, place: Any, total: Any, target: Any, stride: Any, planes: Any
) -> None:
    """Stores the signs of vector `place` of a row as `store_signs` says, and adds its absolute values to `total`."""
    size = call(builder, "llvm.fabs.v16f32", FLOATS, [vector])
    builder.store(builder.fadd(builder.load(total), size), total)
    signs = builder.bitcast(builder.fcmp_ordered(">=", vector, all_lanes(FLOAT, 0.0)), I16)
    plane = builder.shl(place, I64(1))
    into = builder.gep(target, [builder.mul(plane, stride)])
    builder.store(builder.trunc(signs, I8), into, align=1)
    with builder.if_then(builder.icmp_unsigned("<", builder.add(plane, I64(1)), planes)):
        upper = builder.trunc(builder.lshr(signs, I16(8)), I8)
        builder.store(upper, builder.gep(into, [stride]), align=1)


def _lane_sum(builder: Any, total: Any) -> Any:
    kind = ir.FunctionType(FLOAT, [FLOAT, FLOATS])
    reduce = cgutils.get_or_insert_function(builder.module, kind, "llvm.vector.reduce.fadd.v16f32")
    return builder.call(reduce, [ir.Constant(FLOAT, 0.0), builder.load(total)], fastmath=("reassoc",))


@intrinsic
def pair_vectors(_typing: Any, rows: Any, count: Any, step: Any) -> Any:
    """Butterflies between vectors, those `step` vectors apart, in place: the first `count` vectors of rows.

    `count` is a multiple of 2 * `step`.
    """

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        base = _data(context, builder, signature, args, 0, I64(0))
        count, step = args[1:]
        twice = builder.shl(step, I64(1))
        with cgutils.for_range(builder, builder.udiv(count, twice)) as runs:
            first = builder.mul(runs.index, twice)
            with cgutils.for_range(builder, step) as pairs:
                left = _vector_at(builder, base, builder.add(first, pairs.index))
                right = _vector_at(builder, base, builder.add(builder.add(first, pairs.index), step))
                low, high = builder.load(left, align=4), builder.load(right, align=4)
                builder.store(builder.fadd(low, high), left, align=4)
                builder.store(builder.fsub(low, high), right, align=4)
        return context.get_dummy_value()

    i = types.int64
    return types.void(rows, i, i), build


@intrinsic
def store_signs(
    _typing: Any, rows: Any, first: Any, count: Any, run: Any, bits: Any, at: Any, stride: Any, planes: Any
) -> Any:
    """Does the butterflies of steps below `run` within `count` vectors from rows[first] on, and stores their signs.

    A sign is 1 where a channel is at least 0. Those of channels 8 p to 8 p + 7 become the byte bits[at + p * stride],
    for p < `planes`. Returns the sum of the absolute values.
    """

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source = _data(context, builder, signature, args, 0, args[1])
        _, _, count, run, _, at, stride, planes = args
        target = _data(context, builder, signature, args, 4, at)
        total = cgutils.alloca_once_value(builder, all_lanes(FLOAT, 0.0))
        held = cgutils.alloca_once(builder, FLOATS)
        with cgutils.for_range(builder, count) as loop:
            builder.store(builder.load(_vector_at(builder, source, loop.index), align=4), held)
            for step in _STEPS:
                with builder.if_then(builder.icmp_unsigned(">", run, I64(step))):
                    builder.store(_butterfly(builder, builder.load(held), step), held)
            _store_lanes(builder, builder.load(held), loop.index, total, target, stride, planes)
        return _lane_sum(builder, total)

    i = types.int64
    return types.float32(rows, i, i, i, bits, i, i, i), build


def _whole_row(count: int) -> Callable[..., Any]:
    def code(_typing: Any, rows: Any, first: Any, mean: Any, bits: Any, at: Any, stride: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            source = _data(context, builder, signature, args, 0, args[1])
            middle = _data(context, builder, signature, args, 2, I64(0))
            target = _data(context, builder, signature, args, 3, args[4])
            total = cgutils.alloca_once_value(builder, all_lanes(FLOAT, 0.0))
            vectors = []
            for place in range(count):
                key, mean = (
                    builder.load(_vector_at(builder, base, I64(place)), align=4) for base in (source, middle)
                )
                vectors.append(builder.fsub(key, mean))
            for step in (step for step in (1, 2, 4, 8) if step < count):
                for low in (place for place in range(count) if not place & step):
                    left, right = vectors[low], vectors[low + step]
                    vectors[low], vectors[low + step] = builder.fadd(left, right), builder.fsub(left, right)
            for place, vector in enumerate(vectors):
                for step in _STEPS:
                    vector = _butterfly(builder, vector, step)
                _store_lanes(builder, vector, I64(place), total, target, args[5], I64(2 * count))
            return _lane_sum(builder, total)

        i = types.int64
        return types.float32(rows, i, mean, bits, i, i), build

    whole: Callable[..., Any] = intrinsic(code)
    return whole


code_4 = _whole_row(4)
"""(rows, first, mean, bits, at, stride): all butterflies and `store_signs` of the 4 vectors from rows[first] on, less
the mean."""
code_8 = _whole_row(8)
"""`code_4` for 8 vectors."""
code_16 = _whole_row(16)
"""`code_4` for 16 vectors."""
