"""Rows of heads in vectors, rotated as they are widened.

As plain loops these check at each row whether arrays overlap, and allocate. Arrays are contiguous; offsets and sizes
are in elements and are not checked.
"""

# ruff: noqa: ARG001 - the arguments of an intrinsic are its signature; their values come in `args`.

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from moorage.kernels.simd import ELEMENT, LANES, WIDE, load_lanes, pointer_to

_I64 = ir.IntType(64)
_FUSED = ("contract",)


@intrinsic
def rotate_rows(
    _typing: Any, stored: Any, at: Any, count: Any, dim: Any, cos: Any, sin: Any, turn_at: Any, turn_step: Any,
    half: Any, out: Any,
) -> Any:  # fmt: skip
    """out[r * dim + d] = row r of `count` rows from stored[at] on, channels (d, d + half) rotated, as in GPT-NeoX.

    Row r is rotated by `half` elements of cos and sin from turn_at + r * turn_step on. Channels from 2 * half on are
    not rotated. `dim` is a multiple of 2 * LANES, `half` of LANES.
    """

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kinds, element = signature.args, ELEMENT[signature.args[0].dtype]
        _, at, count, dim, _, _, turn_at, turn_step, half, _ = args
        source = pointer_to(context, builder, kinds[0], args[0], at)
        turns = [pointer_to(context, builder, kinds[i], args[i], turn_at) for i in (4, 5)]
        target = pointer_to(context, builder, kinds[9], args[9], _I64(0))

        def store(vector: Any, base: Any, place: Any) -> None:
            into = builder.bitcast(builder.gep(base, [place]), WIDE.as_pointer())
            builder.store(vector, into, align=4)

        with cgutils.for_range(builder, count) as rows:
            first = builder.mul(rows.index, dim)
            row, into = builder.gep(source, [first]), builder.gep(target, [first])
            turn = builder.mul(rows.index, turn_step)
            with cgutils.for_range(builder, builder.udiv(half, _I64(LANES))) as pairs:
                left = builder.mul(pairs.index, _I64(LANES))
                right = builder.add(left, half)
                low, high = (
                    load_lanes(builder, builder.gep(row, [place]), element) for place in (left, right)
                )
                c, s = (
                    load_lanes(builder, builder.gep(base, [builder.add(turn, left)]), ir.FloatType())
                    for base in turns
                )
                minus = builder.fneg(builder.fmul(high, s, flags=_FUSED))
                store(builder.fadd(builder.fmul(low, c, flags=_FUSED), minus, flags=_FUSED), into, left)
                plus = builder.fmul(low, s, flags=_FUSED)
                store(builder.fadd(builder.fmul(high, c, flags=_FUSED), plus, flags=_FUSED), into, right)
            passed = builder.mul(half, _I64(2))
            rest = builder.udiv(builder.sub(dim, passed), _I64(LANES))
            with cgutils.for_range(builder, rest) as columns:
                place = builder.add(passed, builder.mul(columns.index, _I64(LANES)))
                store(load_lanes(builder, builder.gep(row, [place]), element), into, place)
        return context.get_dummy_value()

    i = types.int64
    return types.void(stored, i, i, i, cos, sin, i, i, i, out), build
