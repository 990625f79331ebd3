"""Outliers of packed keys as int16 in unpacked units, see `short_units.py`.

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

from moorage.kernels.packed_blocks.short_operands import MOST_KEY
from moorage.kernels.packed_blocks.short_units import UNIT
from moorage.kernels.simd_lanes import FLOAT, HALF, I16, I32, I64, call
from moorage.kernels.simd_words import (
    all_floats,
    constant,
    load,
    magnitudes,
    offset,
    splat,
    store,
    to_shorts,
)


def _prepare_outliers(dim: int) -> Callable[..., Any]:
    half, lanes = dim // 2, 16
    words = ir.VectorType(I32, lanes)

    def prepare(
        _typing: Any,
        places: Any,
        exact: Any,
        count: Any,
        first_row: Any,
        shares: Any,
        offsets: Any,
        shorts: Any,
    ) -> Any:
        def build(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            places, exact, count, first_row, shares, offsets, shorts = args

            def each(number: int) -> Any:
                return constant([number] * lanes, I32)

            def moved(vector: Any, mask: int, by: int) -> Any:
                own = builder.and_(vector, each(mask))
                return builder.shl(own, each(by)) if by >= 0 else builder.lshr(own, each(-by))

            table = [
                load(builder, offset(builder, shares, at), FLOAT, lanes) for at in range(0, 4 * half, 64)
            ]
            most, least = all_floats(MOST_KEY, lanes), all_floats(-MOST_KEY, lanes)
            before = splat(builder, builder.trunc(builder.mul(first_row, I64(dim)), I32), lanes)
            found = cgutils.alloca_once_value(builder, constant([0] * lanes, I32))
            rounds = builder.udiv(builder.add(count, I64(lanes - 1)), I64(lanes))
            with cgutils.for_range(builder, rounds) as loop:
                first = builder.mul(loop.index, I64(lanes))
                listed = load(builder, builder.add(places, builder.mul(first, I64(2))), I16, lanes)
                place = builder.zext(listed, words)
                halves = load(builder, builder.add(exact, builder.mul(first, I64(2))), HALF, lanes)
                numbers = builder.fpext(halves, most.type)
                pair = builder.and_(place, each(half - 1))
                share = _looked_up(builder, table, pair)
                number = builder.fmul(numbers, share)
                is_larger = builder.fcmp_ordered(">", magnitudes(builder, number), most)
                index = builder.add(
                    splat(builder, builder.trunc(first, I32), lanes), constant(list(range(16)), I32)
                )
                listed = builder.icmp_signed("<", index, splat(builder, builder.trunc(count, I32), lanes))
                flags = builder.zext(builder.and_(is_larger, listed), words)
                builder.store(builder.or_(builder.load(found), flags), found)
                number = builder.select(builder.fcmp_ordered(">", number, most), most, number)
                number = builder.select(builder.fcmp_ordered("<", number, least), least, number)
                store(builder, to_shorts(builder, number), builder.add(shorts, builder.mul(first, I64(2))))
                local = builder.sub(place, before)
                channel = builder.and_(local, each(dim - 1))
                row = builder.sub(local, channel)
                parts = [
                    moved(channel, 1, 7), moved(channel, half, 6 - half.bit_length() + 1), moved(channel, half - 2, 0)
                ]  # fmt: skip
                if dim == UNIT:
                    parts.append(builder.shl(row, each(1)))
                else:
                    parts += [moved(row, dim, -1), builder.shl(builder.and_(row, each(-2 * dim)), each(1))]
                total = parts[0]
                for part in parts[1:]:
                    total = builder.add(total, part)
                into = builder.add(offsets, builder.mul(first, I64(4)))
                builder.store(total, builder.inttoptr(into, words.as_pointer()), align=4)
            flags = call(builder, "llvm.vector.reduce.or.v16i32", I32, [builder.load(found)])
            return builder.icmp_unsigned("!=", flags, I32(0))

        return types.boolean(*[types.int64] * 7), build

    made: Callable[..., Any] = intrinsic(prepare)
    return made


def _looked_up(builder: Any, table: list[Any], index: Any) -> Any:
    """Entries of a table of 32 or 64 float32 in vectors of 16."""
    name, kind = "llvm.x86.avx512.vpermi2var.ps.512", table[0].type
    found = [call(builder, name, kind, [table[at], index, table[at + 1]]) for at in range(0, len(table), 2)]
    if len(found) == 1:
        return found[0]
    is_upper = builder.icmp_unsigned(
        "!=", builder.and_(index, constant([32] * 16, I32)), constant([0] * 16, I32)
    )
    return builder.select(is_upper, found[1], found[0])


prepare_outliers_64, prepare_outliers_128 = (_prepare_outliers(dim) for dim in (64, 128))
"""(places, exact, count, first_row, shares, offsets, shorts): the int16 of `count` outliers of keys, at most
MOST_KEY, and the bytes, int32, at which they lie in rows of unpacked units that begin with `first_row`. 16 are
written at once. Returns whether some were larger."""


@intrinsic
def load_offset(_typing: Any, address: Any) -> Any:
    """The int32 at an address."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.sext(builder.load(builder.inttoptr(args[0], I32.as_pointer()), align=4), I64)

    return types.int64(types.int64), build


@intrinsic
def copy_short(_typing: Any, source: Any, target: Any) -> Any:
    """Copies the int16 at an address to another."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, target = (builder.inttoptr(each, I16.as_pointer()) for each in args)
        builder.store(builder.load(source, align=2), target, align=2)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), build
