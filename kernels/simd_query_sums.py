"""Softmax and weighted values of a tile of rows, each query in a lane of its own; see `simd_queries`."""

# ruff: noqa: ARG001 - the arguments of an intrinsic are its signature; their values come in `args`.

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from moorage.kernels.compiling import njit
from moorage.kernels.simd import ELEMENT, pointer_to
from moorage.kernels.simd_group import load_wide
from moorage.kernels.simd_lanes import FLOAT, FLOATS, I32, I64, LANES, WORDS, all_lanes, multiply_add, splat
from moorage.kernels.simd_queries import ORDERED, TILE_ROWS, tree
from moorage.kernels.simd_softmax import exp2, load, store

_BYTES, _VECTOR = 4, 4 * LANES
_I = types.int64
_EARLY = (0, 16, 8, 24, 4, 20, 12, 28)
"""Rows whose weights are added first, pair by pair, as `row_weights` reduces two vectors of a row."""


@intrinsic
def _peaks(_typing: Any, logits: Any, limits: Any, factor: Any, peaks: Any, out: Any) -> Any:
    def build(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        logits, limits, factor, peaks, out = args
        lowest = all_lanes(FLOAT, float("-inf"))
        most, last = cgutils.alloca_once_value(builder, lowest), load(builder, limits, WORDS)
        with cgutils.for_range(builder, I64(TILE_ROWS)) as loop:
            row = splat(builder, builder.trunc(loop.index, I32))
            place = builder.add(logits, builder.mul(loop.index, I64(_VECTOR)))
            vector = builder.select(builder.icmp_signed("<", row, last), load(builder, place, FLOATS), lowest)
            store(builder, vector, place)
            held = builder.load(most)
            builder.store(builder.select(builder.fcmp_ordered(">", vector, held), vector, held), most)
        highest = builder.fmul(builder.load(most), splat(builder, factor))
        store(builder, highest, out)
        rises = builder.fcmp_ordered(">", highest, load(builder, peaks, FLOATS))
        bits = builder.bitcast(rises, ir.IntType(LANES))
        return builder.icmp_unsigned("!=", bits, ir.IntType(LANES)(0))

    return types.boolean(_I, _I, types.float32, _I, _I), build


@intrinsic
def _weights(_typing: Any, logits: Any, limits: Any, factor: Any, peaks: Any, totals: Any) -> Any:
    def build(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        logits, limits, factor, peaks, totals = args
        factors, last = splat(builder, factor), load(builder, limits, WORDS)
        below = builder.fneg(load(builder, peaks, FLOATS))
        parts = [cgutils.alloca_once(builder, FLOATS) for _ in range(4)]
        sums = cgutils.alloca_once(builder, ir.ArrayType(FLOATS, 4))

        def weight(row: Any) -> Any:
            place = builder.add(logits, builder.mul(row, I64(_VECTOR)))
            found = exp2(builder, multiply_add(builder, load(builder, place, FLOATS), factors, below))
            seen = builder.icmp_signed("<", splat(builder, builder.trunc(row, I32)), last)
            found = builder.select(seen, found, all_lanes(FLOAT, 0.0))
            store(builder, found, place)
            return found

        with cgutils.for_range(builder, I64(len(parts))) as loop:
            added = tree(builder, [weight(builder.add(loop.index, I64(by))) for by in _EARLY])
            builder.store(added, builder.gep(sums, [I64(0), loop.index]))
        terms = [builder.load(builder.gep(sums, [I64(0), I64(at)])) for at in (0, 2, 1, 3)]
        store(builder, builder.fadd(load(builder, totals, FLOATS), tree(builder, terms)), totals)
        return context.get_dummy_value()

    return types.void(_I, _I, types.float32, _I, _I), build


def _weigh(num_queries: int) -> Callable[..., Any]:
    def weigh(_typing: Any, stored: Any, at: Any, count: Any, dim: Any, weights: Any, out: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kind, element = signature.args[0], ELEMENT[signature.args[0].dtype]
            _, at, count, dim, weights, out = args
            columns = range(0, 4 * LANES, LANES)
            sums = [cgutils.alloca_once(builder, FLOATS) for _ in range(num_queries) for _ in columns]
            with cgutils.for_range(builder, builder.udiv(dim, I64(4 * LANES))) as part:
                left = builder.mul(part.index, I64(4 * LANES))
                places = [
                    builder.add(out, builder.mul(builder.add(builder.mul(dim, I64(m)), column), I64(_BYTES)))
                    for m in range(num_queries)
                    for column in (builder.add(left, I64(d)) for d in columns)
                ]
                for total, place in zip(sums, places, strict=True):
                    builder.store(load(builder, place, FLOATS), total)
                with cgutils.for_range(builder, count) as row:
                    first = builder.add(builder.add(at, left), builder.mul(row.index, dim))
                    source = pointer_to(context, builder, kind, args[0], first)
                    values = [load_wide(builder, builder.gep(source, [I64(d)]), element) for d in columns]
                    line = builder.add(weights, builder.mul(row.index, I64(_VECTOR)))
                    for m in range(num_queries):
                        factor = splat(builder, load(builder, builder.add(line, I64(_BYTES * m)), FLOAT))
                        for j, value in enumerate(values):
                            total = sums[m * len(columns) + j]
                            builder.store(multiply_add(builder, value, factor, builder.load(total)), total)
                for total, place in zip(sums, places, strict=True):
                    store(builder, builder.load(total), place)
            return context.get_dummy_value()

        return types.void(stored, _I, _I, _I, _I, _I), build

    made: Callable[..., Any] = intrinsic(weigh)
    return made


_weigh_1, _weigh_2, _weigh_3, _weigh_4, _weigh_5, _weigh_6 = (_weigh(count) for count in range(1, 7))
MOST_WEIGHED = 6
"""Queries of one pass over a tile's values: their sums stay in registers."""


@njit(**ORDERED, forceinline=True)
def tile_peaks(logits: Any, limits: Any, factor: Any, peaks: Any, out: Any) -> Any:
    """out [16] = the highest logit of each query times `factor`; whether that of any is above its peak.

    Logits of rows from a query's limit on become -inf.
    """
    return _peaks(logits, limits, factor, peaks, out)


@njit(**ORDERED, forceinline=True)
def tile_weights(logits: Any, limits: Any, factor: Any, peaks: Any, totals: Any) -> None:
    """Logits become 2**(factor * logit - peak), 0 from a query's limit on; their sums are added to totals."""
    _weights(logits, limits, factor, peaks, totals)


@njit(**ORDERED, forceinline=True)
def add_values(stored: Any, at: Any, count: Any, dim: Any, weights: Any, num_queries: Any, out: Any) -> None:
    """out [num_queries, dim] += sums of `count` rows from stored[at] on by weights [count, 16]."""
    done, passes = 0, (num_queries + MOST_WEIGHED - 1) // MOST_WEIGHED
    while done < num_queries:
        some = (num_queries - done + passes - 1) // passes
        line, into = weights + 4 * done, out + 4 * done * dim
        if some == 6:
            _weigh_6(stored, at, count, dim, line, into)
        elif some == 5:
            _weigh_5(stored, at, count, dim, line, into)
        elif some == 4:
            _weigh_4(stored, at, count, dim, line, into)
        elif some == 3:
            _weigh_3(stored, at, count, dim, line, into)
        elif some == 2:
            _weigh_2(stored, at, count, dim, line, into)
        else:
            _weigh_1(stored, at, count, dim, line, into)
        done, passes = done + some, passes - 1
