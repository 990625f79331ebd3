"""Logits of a group of queries with consecutive rows, for head sizes that are known when this is compiled.

The queries stay in registers, and every place in a row is a constant away from its start. Arrays are flat; offsets
are in elements and are not checked.
"""

# ruff: noqa: ARG001 - the arguments of an intrinsic are its signature; their values come in `args`.

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from moorage.kernels.simd import ELEMENT, TILE, pointer_to
from moorage.kernels.simd_group import lane_sums, load_wide, prefetch_row, unless_none
from moorage.kernels.simd_lanes import FLOAT, FUSED, I64, LANES, fused


def _head_dots(num_queries: int, dim: int) -> Callable[..., Any]:
    half, pairs = dim // 2, dim // 2 // LANES

    def dots(
        _typing: Any, stored: Any, at: Any, step: Any, ahead: Any, tiles: Any, cos: Any, sin: Any, turn_at: Any,
        turn_step: Any, rotates: Any, queries: Any, query_at: Any, out: Any, out_at: Any, out_stride: Any,
    ) -> Any:  # fmt: skip
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kinds, element = signature.args, ELEMENT[signature.args[0].dtype]
            _, at, step, ahead, tiles, _, _, turn_at, turn_step, rotates, _, query_at, _, out_at, stride = (
                args
            )
            asks = kinds[3] != types.none

            def place(index: int, begin: Any, by: Any, rows: Any) -> Any:
                first = pointer_to(context, builder, kinds[index], args[index], begin)
                return builder.gep(first, [builder.mul(by, rows)])

            def vector(pointer: Any, offset: int, kind: Any) -> Any:
                return load_wide(builder, builder.gep(pointer, [I64(offset)]), kind)

            query = pointer_to(context, builder, kinds[10], args[10], query_at)
            held = [
                [vector(query, m * dim + d, FLOAT) for d in range(0, dim, LANES)] for m in range(num_queries)
            ]

            def tile(index: Any, turned: bool) -> None:
                sums: list[list[Any]] = [[None] * TILE for _ in range(num_queries)]
                numbers = [builder.add(builder.mul(index, I64(TILE)), I64(r)) for r in range(TILE)]
                rows = [place(0, at, step, number) for number in numbers]
                for row in rows if asks else ():
                    prefetch_row(builder, builder.gep(row, [ahead]), dim)
                for pair in range(pairs):
                    for r, row in enumerate(rows):
                        low, high = (vector(row, LANES * pair + by, element) for by in (0, half))
                        if turned:
                            c, s = (
                                vector(place(i, turn_at, turn_step, numbers[r]), LANES * pair, FLOAT)
                                for i in (5, 6)
                            )
                            minus = builder.fneg(builder.fmul(high, s, flags=FUSED))
                            plus = builder.fmul(low, s, flags=FUSED)
                            low, high = (
                                fused(builder, low, c, minus),
                                fused(builder, high, c, plus),
                            )
                        for m, parts in enumerate(held):
                            for part, value in ((parts[pair], low), (parts[pair + pairs], high)):
                                total = sums[m][r]
                                sums[m][r] = (
                                    builder.fmul(value, part, flags=FUSED)
                                    if total is None
                                    else fused(builder, value, part, total)
                                )
                for m, totals in enumerate(sums):
                    found = lane_sums(builder, totals)
                    first = builder.add(builder.add(out_at, builder.mul(stride, I64(m))), numbers[0])
                    into = pointer_to(context, builder, kinds[12], args[12], first)
                    builder.store(found, builder.bitcast(into, found.type.as_pointer()), align=4)

            with builder.if_else(rotates) as (then, otherwise):
                for branch, turned in ((then, True), (otherwise, False)):
                    with branch, cgutils.for_range(builder, tiles) as loop:
                        tile(loop.index, turned)
            return context.get_dummy_value()

        i = types.int64
        kinds = (stored, i, i, unless_none(ahead), i, cos, sin, i, i, types.boolean, queries, i, out, i, i)
        return types.void(*kinds), build

    made: Callable[..., Any] = intrinsic(dots)
    return made


dots_64_1, dots_64_2, dots_64_3, dots_64_4 = (_head_dots(count, 64) for count in (1, 2, 3, 4))
"""For heads of 64 channels, by number of queries: (stored, at, step, ahead, tiles, cos, sin, turn_at, turn_step,
rotates, queries, query_at, out, out_at, out_stride). out[out_at + m * out_stride + t] = the query at query_at + m *
64 times the row at at + t * step, for t < tiles * TILE. Where `rotates`, channels (d, d + 32) of row t are rotated by
32 elements of cos and sin from turn_at + t * turn_step on. What lies `ahead` elements after each row is asked for,
unless it is None."""
dots_128_1, dots_128_2, dots_128_3, dots_128_4 = (_head_dots(count, 128) for count in (1, 2, 3, 4))
"""`dots_64_1` to `dots_64_4` for heads of 128 channels."""
