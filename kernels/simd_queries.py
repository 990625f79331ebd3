"""Attention of up to 16 queries to a tile of rows, each query in a lane of its own: no sums go across lanes.

Sums have the order of `simd_heads` and `simd_softmax`, so that a query gets the bits that it gets there. The
functions are compiled without leave to reorder sums. Scratch arrays are given by their addresses in bytes, stored
arrays with offsets in elements; nothing is checked.

A tile has TILE_ROWS rows of 64 or 128 channels, all or none of them rotated. Scratch of `dim` channels: keys
[TILE_ROWS, dim], queries [dim, 16], logits and weights [TILE_ROWS, 16], limits int32 [16], peaks and totals [16].
"""

# ruff: noqa: ARG001 - the arguments of an intrinsic are its signature; their values come in `args`.

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from moorage.kernels.compiling import njit
from moorage.kernels.simd import ELEMENT, TILE, pointer_to
from moorage.kernels.simd_group import load_wide, prefetch_row
from moorage.kernels.simd_lanes import (
    FLOAT,
    FLOATS,
    FUSED,
    I32,
    I64,
    LANES,
    WORDS,
    fused,
    splat,
)
from moorage.kernels.simd_softmax import load, store

TILE_ROWS = 32
ORDERED: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy", "fastmath": {"contract"}}
"""Compiler options of functions whose sums keep their order."""
_BYTES, _VECTOR = 4, 4 * LANES
_DOUBLE = ir.DoubleType()
_DOUBLES = ir.VectorType(_DOUBLE, LANES)
_I = types.int64
_QUADS = (0, 8, 4, 12)
"""First lanes of fours of neighbouring lanes, in the order in which `simd_group.lane_sums` adds them."""


def _splat_double(builder: Any, value: Any) -> Any:
    empty = ir.Constant(_DOUBLES, ir.Undefined)
    lane = builder.insert_element(empty, value, I32(0))
    return builder.shuffle_vector(lane, empty, ir.Constant(WORDS, [0] * LANES))


def tree(builder: Any, terms: list[Any]) -> Any:
    """The sum of neighbouring pairs, then of pairs of these, and so on."""
    while len(terms) > 1:
        terms = [builder.fadd(left, right) for left, right in zip(terms[::2], terms[1::2], strict=True)]
    return terms[0]


def _turned(builder: Any, low: Any, high: Any, c: Any, s: Any) -> tuple[Any, Any]:
    """A pair of channels rotated."""
    minus = builder.fneg(builder.fmul(high, s, flags=FUSED))
    plus = builder.fmul(low, s, flags=FUSED)
    return fused(builder, low, c, minus), fused(builder, high, c, plus)


@intrinsic
def _angles(
    _typing: Any, turn_re: Any, turn_im: Any, base: Any, half: Any, copies: Any, shift: Any, stride: Any, cos: Any,
    sin: Any,
) -> Any:  # fmt: skip
    def build(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        turn_re, turn_im, base, half, copies, shift, stride, cos, sin = args
        with cgutils.for_range(builder, half) as loop:
            at = builder.mul(loop.index, I64(2 * _VECTOR))
            re, im = (load(builder, builder.add(turn, at), _DOUBLES) for turn in (turn_re, turn_im))
            place = builder.add(base, builder.mul(loop.index, I64(16)))
            base_re, base_im = (
                _splat_double(builder, load(builder, builder.add(place, I64(by)), _DOUBLE)) for by in (0, 8)
            )
            c = builder.fadd(builder.fmul(re, base_re), builder.fmul(im, base_im))
            s = builder.fsub(builder.fmul(im, base_re), builder.fmul(re, base_im))
            into = builder.mul(loop.index, stride)
            for vector, out in ((builder.fptrunc(c, FLOATS), cos), (builder.fptrunc(s, FLOATS), sin)):
                with cgutils.for_range(builder, copies) as copy:
                    by = builder.add(into, builder.mul(copy.index, shift))
                    store(builder, vector, builder.add(out, by))
        return context.get_dummy_value()

    return types.void(*[_I] * 9), build


@intrinsic
def _turn(_typing: Any, queries: Any, cos: Any, sin: Any, half: Any, stride: Any, out: Any) -> Any:
    def build(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        queries, cos, sin, half, stride, out = args
        across = builder.mul(half, stride)
        with cgutils.for_range(builder, half) as loop:
            at = builder.mul(loop.index, stride)
            low, c, s = (load(builder, builder.add(start, at), FLOATS) for start in (queries, cos, sin))
            high = load(builder, builder.add(queries, builder.add(at, across)), FLOATS)
            low, high = _turned(builder, low, high, c, s)
            into = builder.add(out, builder.mul(loop.index, I64(_VECTOR)))
            store(builder, low, into)
            store(builder, high, builder.add(into, builder.mul(half, I64(_VECTOR))))
        return context.get_dummy_value()

    return types.void(*[_I] * 6), build


def _widen_rows(dim: int) -> Callable[..., Any]:
    half = dim // 2

    def widen(
        _typing: Any,
        stored: Any,
        at: Any,
        count: Any,
        cos: Any,
        sin: Any,
        turn_at: Any,
        rotates: Any,
        out: Any,
    ) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kinds, element = signature.args, ELEMENT[signature.args[0].dtype]
            _, at, count, _, _, turn_at, rotates, out = args

            def row(index: Any, turned: bool) -> None:
                first = builder.add(at, builder.mul(index, I64(dim)))
                source = pointer_to(context, builder, kinds[0], args[0], first)
                turn = builder.add(turn_at, builder.mul(index, I64(half)))
                turns = [pointer_to(context, builder, kinds[i], args[i], turn) for i in (3, 4)]
                into = builder.add(out, builder.mul(index, I64(_BYTES * dim)))
                for d in range(0, half, LANES):
                    low, high = (
                        load_wide(builder, builder.gep(source, [I64(place)]), element)
                        for place in (d, d + half)
                    )
                    if turned:
                        c, s = (load_wide(builder, builder.gep(base, [I64(d)]), FLOAT) for base in turns)
                        low, high = _turned(builder, low, high, c, s)
                    store(builder, low, builder.add(into, I64(_BYTES * d)))
                    store(builder, high, builder.add(into, I64(_BYTES * (d + half))))

            with builder.if_else(rotates) as (then, otherwise):
                for branch, turned in ((then, True), (otherwise, False)):
                    with branch, cgutils.for_range(builder, count) as loop:
                        row(loop.index, turned)
            return context.get_dummy_value()

        return types.void(stored, _I, _I, cos, sin, _I, types.boolean, _I), build

    made: Callable[..., Any] = intrinsic(widen)
    return made


def _dots(dim: int) -> Callable[..., Any]:
    half = dim // 2

    def dots(
        _typing: Any,
        keys: Any,
        tiles: Any,
        queries: Any,
        out: Any,
        stored: Any,
        next_key: Any,
        next_value: Any,
    ) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            keys, tiles, queries, out, _, *coming = args

            def products(lane: int, rows: Any) -> list[Any]:
                """The products of TILE rows: the sum over the channels that share a lane of `simd_heads`."""
                sums: list[Any] = [None] * TILE
                for d in range(lane, half, LANES):
                    for channel in (d, d + half):
                        query = load(builder, builder.add(queries, I64(_VECTOR * channel)), FLOATS)
                        for r in range(TILE):
                            place = builder.add(rows, I64(_BYTES * (r * dim + channel)))
                            key = splat(builder, load(builder, place, FLOAT))
                            sums[r] = (
                                builder.fmul(key, query, flags=FUSED)
                                if sums[r] is None
                                else fused(builder, key, query, sums[r])
                            )
                return sums

            with cgutils.for_range(builder, tiles) as loop:
                rows = builder.add(keys, builder.mul(loop.index, I64(_BYTES * TILE * dim)))
                quads = []
                for part, first in enumerate(_QUADS):
                    row = builder.add(builder.mul(loop.index, I64(TILE)), I64(part))
                    for start in coming:
                        place = builder.add(start, builder.mul(row, I64(dim)))
                        prefetch_row(
                            builder, pointer_to(context, builder, signature.args[4], args[4], place), dim
                        )
                    lanes = [products(first + lane, rows) for lane in range(4)]
                    quads.append([tree(builder, list(terms)) for terms in zip(*lanes, strict=True)])
                into = builder.add(out, builder.mul(loop.index, I64(_VECTOR * TILE)))
                for r, terms in enumerate(zip(*quads, strict=True)):
                    store(builder, tree(builder, list(terms)), builder.add(into, I64(_VECTOR * r)))
            return context.get_dummy_value()

        return types.void(_I, _I, _I, _I, stored, _I, _I), build

    made: Callable[..., Any] = intrinsic(dots)
    return made


_widen_64, _widen_128, _dots_64, _dots_128 = _widen_rows(64), _widen_rows(128), _dots(64), _dots(128)


@njit(**ORDERED, forceinline=True)
def lane_angles(
    turn_re: Any, turn_im: Any, base: Any, half: Any, copies: Any, rows: Any, lanes: Any, cos: Any, sin: Any
) -> None:  # fmt: skip
    """Angles of `rows` positions towards a block, in lanes: cos and sin [half, lanes], `copies` one behind the other.

    turn_re and turn_im are float64 [half, 16], base complex128 [half], see `turn_angles`. Up to 16 numbers behind
    cos and sin are written, too.
    """
    _angles(turn_re, turn_im, base, half, copies, 4 * rows, 4 * lanes, cos, sin)


@njit(**ORDERED, forceinline=True)
def turn_queries(queries: Any, cos: Any, sin: Any, half: Any, lanes: Any, out: Any) -> None:
    """out [2 * half, 16] = queries [2 * half, lanes], channels (d, d + half) rotated by cos and sin [half, lanes]."""
    _turn(queries, cos, sin, half, 4 * lanes, out)


@njit(**ORDERED, forceinline=True)
def widen_rows(
    stored: Any, at: Any, count: Any, dim: Any, cos: Any, sin: Any, turn_at: Any, rotates: Any, out: Any
) -> None:
    """out [count, dim] = the rows from stored[at] on in float32.

    Where `rotates`, row t is rotated by dim / 2 elements of cos and sin from turn_at + t * dim / 2 on.
    """
    if dim == 64:
        _widen_64(stored, at, count, cos, sin, turn_at, rotates, out)
    else:
        _widen_128(stored, at, count, cos, sin, turn_at, rotates, out)


@njit(**ORDERED, forceinline=True)
def dot_rows(
    keys: Any, count: Any, dim: Any, queries: Any, out: Any, stored: Any, next_key: Any, next_value: Any
) -> None:
    """out [count, 16] = products of keys and queries; up to three rows more are read and written.

    As many rows from stored[next_key] and stored[next_value] on are asked for, spread over the work.
    """
    tiles = (count + TILE - 1) // TILE
    if dim == 64:
        _dots_64(keys, tiles, queries, out, stored, next_key, next_value)
    else:
        _dots_128(keys, tiles, queries, out, stored, next_key, next_value)
