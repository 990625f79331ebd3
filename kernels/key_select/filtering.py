"""Keys whose value is above a threshold, found in vectors of 16; and the best of a list."""

# ruff: noqa: ARG001 - the arguments of an intrinsic are its signature; their values come in `args`.

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from moorage.kernels.compiling import njit
from moorage.kernels.numba_flags import SERIAL
from moorage.kernels.simd_lanes import (
    FLOATS,
    I32,
    I64,
    LANES,
    WORDS,
    call,
    host_has,
    splat,
)
from moorage.kernels.simd_softmax import load, store
from moorage.kernels.vector_math import extremes32

_BITS, _MASK = ir.IntType(LANES), ir.VectorType(ir.IntType(1), LANES)
_COMPRESS = "llvm.x86.avx512.mask.compress."
_LARGEST, _HALVINGS = np.finfo(np.float32).max, 16


def _append(builder: Any, vector: Any, mask: Any, place: Any) -> None:
    """Stores the lanes of a mask one behind the other; what follows them within a vector is overwritten."""
    kind = "v16f32" if vector.type == FLOATS else "v16i32"
    if host_has("avx512f"):
        none = ir.Constant(vector.type, ir.Undefined)
        store(builder, call(builder, _COMPRESS + kind, vector.type, [vector, none, mask]), place)
        return
    pointer = builder.inttoptr(place, vector.type.element.as_pointer())
    nothing = ir.FunctionType(ir.VoidType(), [vector.type, pointer.type, _MASK])
    name = "llvm.masked.compressstore." + kind
    builder.call(cgutils.get_or_insert_function(builder.module, nothing, name), [vector, pointer, mask])


def _numbers(builder: Any, first: Any) -> Any:
    """Words that count from `first` on."""
    return builder.add(splat(builder, builder.trunc(first, I32)), ir.Constant(WORDS, list(range(LANES))))


@intrinsic
def list_above(
    _typing: Any, row: Any, vectors: Any, threshold: Any, first: Any, ids: Any, values: Any
) -> Any:
    """Appends the keys above a threshold to lists; returns how many.

    The values of `vectors` * LANES keys, float32, lie in a row. Those above `threshold` are appended to `values`, and
    their numbers to `ids`, int32 from `first` on, of which up to LANES elements behind them are overwritten.
    """

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        row, vectors, threshold, first, ids, values = args
        count, limits = cgutils.alloca_once_value(builder, I64(0)), splat(builder, threshold)
        with cgutils.for_range(builder, vectors) as loop:
            found = load(builder, builder.add(row, builder.mul(loop.index, I64(4 * LANES))), FLOATS)
            mask = builder.fcmp_ordered(">", found, limits)
            bits = builder.bitcast(mask, _BITS)
            with builder.if_then(builder.icmp_unsigned("!=", bits, _BITS(0)), likely=False):
                number = builder.add(first, builder.mul(loop.index, I64(LANES)))
                ahead = builder.mul(builder.load(count), I64(4))
                _append(builder, _numbers(builder, number), mask, builder.add(ids, ahead))
                _append(builder, found, mask, builder.add(values, ahead))
                ones = call(builder, "llvm.ctpop.i16", _BITS, [bits])
                builder.store(builder.add(builder.load(count), builder.zext(ones, I64)), count)
        return builder.load(count)

    i = types.int64
    return types.int64(i, i, types.float32, i, i, i), build


@njit(**SERIAL)
def _ordered(value: Any) -> Any:
    """An integer that grows with a float32."""
    bits = np.int64(np.float32(value).view(np.int32))
    return bits if bits >= 0 else np.int64(-2147483648) - bits


@njit(**SERIAL)
def _of_ordered(number: Any) -> Any:
    """The float32 of `_ordered`."""
    bits = number if number >= 0 else np.int64(-2147483648) - number
    return np.int32(bits).view(np.float32)


@njit(**SERIAL)
def below(value: Any) -> Any:
    """The largest float32 that is smaller than a finite one."""
    return _of_ordered(_ordered(value) - 1)


@njit(**SERIAL)
def _count_from(values: Any, count: Any, least: Any) -> Any:
    found = np.int32(0)
    for i in range(count):
        found += np.int32(values[i] >= least)
    return found


@njit(**SERIAL)
def worst_of_best(values: Any, count: Any, most: Any) -> Any:
    """(worst, number): the largest float32 that at least `most` of the first `count` values reach, and how many do.

    A smaller one where exactly `most` reach it. 1 <= most <= count; no value is NaN.
    """
    low, high = extremes32(values[:count])
    least, largest, reaching = _ordered(low), _ordered(high), count
    while least < largest:
        middle = least + (largest - least + 1) // 2
        found = _count_from(values, count, _of_ordered(middle))
        if found == most:
            return _of_ordered(middle), most
        if found > most:
            least, reaching = middle, found
        else:
            largest = middle - 1
    return _of_ordered(least), reaching


@njit(**SERIAL)
def about_reached(values: Any, count: Any, least: Any) -> Any:
    """A float32 that at least `least` of the first `count` values reach, and at most a quarter more that differ."""
    high = min(extremes32(values[:count])[1], _LARGEST)
    step = np.float32(1)
    low = high - step
    while low > -np.inf and _count_from(values, count, low) < least:
        high, step = low, step + step
        low = high - step
    for _ in range(_HALVINGS):
        middle = np.float32(0.5) * (low + high)
        found = _count_from(values, count, middle)
        if found < least:
            high = middle
        else:
            low = middle
            if 4 * found <= 5 * least:
                break
    return low


@njit(**SERIAL)
def keep_best(ids: Any, values: Any, count: Any, most: Any) -> Any:
    """Keeps the `most` largest of the first `count` values and their ids, in their order; returns how many stay.

    Of equal values the first stay. `count` is at most the length of the lists less LANES.
    """
    if count <= most:
        return count
    worst, reaching = worst_of_best(values, count, most)
    vectors = -(-count // LANES)
    values[count : vectors * LANES] = -np.inf
    places, kept = np.empty(reaching + LANES, np.int32), np.empty(reaching + LANES, np.float32)
    list_above(values.ctypes.data, vectors, below(worst), 0, places.ctypes.data, kept.ctypes.data)
    surplus, stay = reaching - most, np.int64(0)
    for t in range(reaching - 1, -1, -1):
        # The last of those that are equal to the worst go.
        if surplus > 0 and kept[t] == worst:
            places[t] = -1
            surplus -= 1
    for t in range(reaching):
        if places[t] >= 0:
            ids[stay], values[stay] = ids[places[t]], kept[t]
            stay += 1
    return stay
