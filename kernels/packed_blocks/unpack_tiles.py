"""Rows of packed codes unpacked to float32, in vectors of 16 lanes. Levels are looked up in registers (AVX-512).

All arguments of the intrinsics are addresses in bytes and numbers; nothing is checked. `layout.py` draws the rows.
"""

# ruff: noqa: ARG001 - the arguments of an intrinsic are its signature; their values come in `args`.

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from moorage.kernels.simd import LINE_BYTES
from moorage.kernels.simd_lanes import (
    FLOAT,
    FLOATS,
    HALF,
    I8,
    I16,
    I32,
    I64,
    LANES,
    WORDS,
    call,
    host_has,
    multiply_add,
    splat,
)
from moorage.kernels.simd_softmax import load, store

HAS_LOOKUP = host_has("avx512f")
"""Whether the intrinsics of codes can be used: one instruction looks 16 levels up."""
_ROWS = 4
"""Rows that are unpacked side by side, so that each may wait for its memory while the others go on."""


def _at(builder: Any, address: Any, kind: ir.Type, align: int) -> Any:
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=align)


def _each(kind: ir.Type, numbers: list[int]) -> Any:
    return ir.Constant(ir.VectorType(kind, LANES), numbers)


def _look_up(builder: Any, levels: Any, codes: Any) -> Any:
    """The levels at the low four bits of each code."""
    return call(builder, "llvm.x86.avx512.permvar.sf.512", FLOATS, [levels, codes])


def _ask(builder: Any, address: Any) -> None:
    """Asks for the cache line of an address in L2; any address is safe."""
    target = builder.inttoptr(address, I8.as_pointer())
    call(builder, "llvm.prefetch.p0", ir.VoidType(), [target, I32(0), I32(2), I32(1)])


class _Codes:
    """The levels of one row at one step, as code for a number of bits."""

    def __init__(self, builder: Any, bits: int, levels: Any, high_plane: Any) -> None:
        self._builder, self._bits, self._high_plane = builder, bits, high_plane
        self.vectors = 2 if bits == 4 else 1
        """Vectors of channels of a step; the second lies half the width behind the first."""
        if bits == 8:
            return
        self._levels = load(builder, levels, FLOATS)
        if bits == 3:
            self._low, self._high = (
                builder.shuffle_vector(
                    self._levels, self._levels, _each(I32, [at + i % 4 for i in range(LANES)])
                )
                for at in (0, 4)
            )

    def at(self, row: Any, step: Any) -> list[Any]:
        """The vectors of levels of a step in the row at an address."""
        builder, bits = self._builder, self._bits
        if bits >= 4:
            place = builder.add(row, builder.mul(step, I64(LANES)))
            codes = builder.zext(_at(builder, place, ir.VectorType(I8, LANES), 1), WORDS)
            if bits == 8:
                return [builder.uitofp(codes, FLOATS)]
            high = builder.lshr(codes, _each(I32, [4] * LANES))
            return [_look_up(builder, self._levels, each) for each in (codes, high)]
        word = _at(builder, builder.add(row, builder.mul(step, I64(4))), I32, 1)
        codes = builder.lshr(splat(builder, word), _each(I32, [2 * lane for lane in range(LANES)]))
        if bits == 2:
            return [_look_up(builder, self._levels, codes)]
        place = builder.add(builder.add(row, self._high_plane), builder.mul(step, I64(2)))
        third = builder.bitcast(_at(builder, place, I16, 1), ir.VectorType(ir.IntType(1), LANES))
        low, high = (_look_up(builder, each, codes) for each in (self._low, self._high))
        return [builder.select(third, high, low)]


def _unpack_rows(bits: int, by_row: bool) -> Callable[..., Any]:
    def unpack(
        _typing: Any, codes: Any, row_bytes: Any, high_plane: Any, count: Any, dim: Any, half_width: Any, levels: Any,
        scale: Any, zero: Any, out: Any, ahead: Any,
    ) -> Any:  # fmt: skip
        def build(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            codes, row_bytes, high_plane, count, dim, half_width, levels, scale, zero, out, ahead = args
            source = _Codes(builder, bits, levels, high_plane)
            steps = builder.udiv(half_width if bits == 4 else dim, I64(LANES))

            def of_row(base: Any, number: Any) -> Any:
                half = _at(builder, builder.add(base, builder.mul(number, I64(2))), HALF, 2)
                return splat(builder, builder.fpext(half, FLOAT))

            def rows(first: Any, number: int) -> None:
                numbers = [builder.add(first, I64(r)) for r in range(number)]
                begins = [builder.add(codes, builder.mul(each, row_bytes)) for each in numbers]
                ends = [builder.add(out, builder.mul(each, builder.mul(dim, I64(4)))) for each in numbers]
                first_ahead = builder.add(begins[0], ahead)
                lines = builder.udiv(
                    builder.add(builder.mul(row_bytes, I64(number)), I64(LINE_BYTES - 1)), I64(LINE_BYTES)
                )
                with cgutils.for_range(builder, lines) as loop:
                    _ask(builder, builder.add(first_ahead, builder.mul(loop.index, I64(LINE_BYTES))))
                stats = [tuple(of_row(base, each) for base in (scale, zero)) for each in numbers if by_row]

                def columns(step: Any, half: int, vectors: list[Any]) -> None:
                    channel = builder.mul(step, I64(LANES))
                    channel = builder.add(channel, half_width) if half else channel
                    by = builder.mul(channel, I64(4))
                    shared = None
                    if not by_row:
                        shared = tuple(load(builder, builder.add(base, by), FLOATS) for base in (scale, zero))

                    def write() -> None:
                        for r, vector in enumerate(vectors):
                            factor, added = shared or stats[r]
                            store(
                                builder,
                                multiply_add(builder, vector, factor, added),
                                builder.add(ends[r], by),
                            )

                    if half:  # a padded channel lies in no row
                        with builder.if_then(builder.icmp_unsigned("<", channel, dim), likely=True):
                            write()
                    else:
                        write()

                with cgutils.for_range(builder, steps) as loop:
                    found = [source.at(begin, loop.index) for begin in begins]
                    for half in range(source.vectors):
                        columns(loop.index, half, [vectors[half] for vectors in found])

            whole = builder.udiv(count, I64(_ROWS))
            with cgutils.for_range(builder, whole) as loop:
                rows(builder.mul(loop.index, I64(_ROWS)), _ROWS)
            done = builder.mul(whole, I64(_ROWS))
            with cgutils.for_range(builder, builder.sub(count, done)) as loop:
                rows(builder.add(done, loop.index), 1)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 11), build

    made: Callable[..., Any] = intrinsic(unpack)
    return made


unpack_keys_8, unpack_keys_4, unpack_keys_3, unpack_keys_2 = (
    _unpack_rows(bits, False) for bits in (8, 4, 3, 2)
)
"""(codes, row_bytes, high_plane, count, dim, half_width, levels, scale, zero, out, ahead): `count` rows of codes
become rows of `dim` float32 at `out`. levels: 16 float32; scale, zero: a float32 for each channel of the width. What
lies `ahead` bytes after each row is asked for."""
unpack_values_8, unpack_values_4, unpack_values_3, unpack_values_2 = (
    _unpack_rows(bits, True) for bits in (8, 4, 3, 2)
)
"""The same with an fp16 scale and zero for each row."""


@intrinsic
def widen_rows(_typing: Any, rows: Any, count: Any, out: Any) -> Any:
    """`count` fp16, a multiple of LANES, become float32 at `out`."""

    def build(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        rows, count, out = args
        with cgutils.for_range(builder, builder.udiv(count, I64(LANES))) as loop:
            at = builder.mul(loop.index, I64(LANES))
            halves = _at(builder, builder.add(rows, builder.mul(at, I64(2))), ir.VectorType(HALF, LANES), 2)
            store(builder, builder.fpext(halves, FLOATS), builder.add(out, builder.mul(at, I64(4))))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), build
