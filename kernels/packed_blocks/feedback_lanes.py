"""The inner loops of `feedback.py`, in vectors of 16 keys. Each product and sum is rounded, as in `reference.py`.

Arguments of the intrinsics are addresses in bytes and numbers; nothing is checked.
"""

# ruff: noqa: ARG001 - the arguments of an intrinsic are its signature; their values come in `args`.

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from moorage.kernels.packed_blocks.ranges import HIDDEN
from moorage.kernels.simd_lanes import FLOAT, FLOATS, I8, I64, LANES, WORDS, all_lanes, splat
from moorage.kernels.simd_softmax import load, store

SIDE_BY_SIDE = 2
"""Vectors of keys that are taken together; each number that is loaded serves all of them."""
GROUP = 8
"""Channels whose errors are taken off later ones at once."""


def _take_off(group: int) -> Callable[..., Any]:
    def take_off(
        _typing: Any,
        shares: Any,
        share_bytes: Any,
        errors: Any,
        wanted: Any,
        row_bytes: Any,
        rows: Any,
        vectors: Any,
    ) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            shares, share_bytes, errors, wanted, row_bytes, rows, vectors = args
            size = I64(4 * LANES * SIDE_BY_SIDE)
            with cgutils.for_range(builder, builder.udiv(vectors, I64(SIDE_BY_SIDE))) as outer:
                by = builder.mul(outer.index, size)
                places = [builder.add(by, I64(4 * LANES * v)) for v in range(SIDE_BY_SIDE)]
                held = [
                    [load(builder, builder.add(builder.add(errors, builder.mul(row_bytes, I64(g))), place), FLOATS)
                     for place in places]
                    for g in range(group)
                ]  # fmt: skip
                with cgutils.for_range(builder, rows) as loop:
                    at = builder.add(wanted, builder.mul(loop.index, row_bytes))
                    into = [builder.add(at, place) for place in places]
                    found = [load(builder, each, FLOATS) for each in into]
                    share_at = builder.add(shares, builder.mul(loop.index, I64(4)))
                    for g, own in enumerate(held):
                        number = load(builder, builder.add(share_at, builder.mul(share_bytes, I64(g))), FLOAT)
                        share = splat(builder, number)
                        found = [
                            builder.fsub(x, builder.fmul(share, error))
                            for x, error in zip(found, own, strict=True)
                        ]
                    for each, x in zip(into, found, strict=True):
                        store(builder, x, each)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), build

    made: Callable[..., Any] = intrinsic(take_off)
    return made


take_off_one, take_off_group = _take_off(1), _take_off(GROUP)
"""(shares, share_bytes, errors, wanted, row_bytes, rows, vectors): takes the errors of 1 or GROUP channels, one after
the other, off `rows` later channels at `wanted`. Channels lie row_bytes apart. The shares of one channel in the later
ones lie side by side, those of the next channel share_bytes after them."""


def _code_channel(bits: int) -> Callable[..., Any]:
    def code_channel(
        _typing: Any, wanted: Any, kept: Any, errors: Any, codes: Any, vectors: Any, scale: Any, zero: Any,
        inverse: Any, limits: Any, levels: Any,
    ) -> Any:  # fmt: skip
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            wanted, kept, errors, codes, vectors, scale, zero, inverse, limits, levels = args
            scale, zero, inverse = (splat(builder, each) for each in (scale, zero, inverse))

            def spread(table: Any, at: int) -> Any:
                return splat(builder, load(builder, builder.add(table, I64(4 * at)), FLOAT))

            above = [spread(limits, k) for k in range(2**bits - 1)]
            stands = [spread(levels, k) for k in range(2**bits)]
            hidden, one, nothing = (
                all_lanes(FLOAT, float(HIDDEN)),
                ir.Constant(WORDS, [1] * LANES),
                ir.Constant(WORDS, [0] * LANES),
            )
            with cgutils.for_range(builder, vectors) as loop:
                by = builder.mul(loop.index, I64(4 * LANES))
                x, exact = (load(builder, builder.add(each, by), FLOATS) for each in (wanted, kept))
                is_apart = builder.fcmp_ordered(">", exact, hidden)
                normal = builder.fmul(builder.fsub(x, zero), inverse)
                normal = builder.select(is_apart, hidden, normal)
                code, level = nothing, stands[0]
                for limit, stand in zip(above, stands[1:], strict=True):
                    exceeds = builder.fcmp_ordered(">", normal, limit)
                    code = builder.add(code, builder.select(exceeds, one, nothing))
                    level = builder.select(exceeds, stand, level)
                stored = builder.fadd(zero, builder.fmul(scale, level))
                stored = builder.select(is_apart, exact, stored)
                store(builder, builder.fsub(x, stored), builder.add(errors, by))
                place = builder.add(codes, builder.mul(loop.index, I64(LANES)))
                octets = builder.trunc(code, ir.VectorType(I8, LANES))
                builder.store(octets, builder.inttoptr(place, octets.type.as_pointer()), align=1)
            return context.get_dummy_value()

        kinds = [types.int64] * 5 + [types.float32] * 3 + [types.int64] * 2
        return types.void(*kinds), build

    made: Callable[..., Any] = intrinsic(code_channel)
    return made


code_channel_4, code_channel_3, code_channel_2 = (_code_channel(bits) for bits in (4, 3, 2))
"""(wanted, kept, errors, codes, vectors, scale, zero, inverse, limits, levels), by bits: codes `vectors` vectors of
numbers of one channel, a byte each; the errors are what was wanted less what is stored. A number whose `kept` is not
HIDDEN is stored as that, and its code is 0."""
