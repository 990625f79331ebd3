"""Dot products of 4-bit codes and 8-bit weights in whole numbers, two codes to a byte."""

# ruff: noqa: ARG001 - the arguments of an intrinsic are its signature; their values come in `args`.

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from moorage.kernels.simd import TILE
from moorage.kernels.simd_lanes import call

CODE_BYTES = 32
"""Bytes of codes that are multiplied at once; a vector of codes must be a multiple of this long."""

_I32, _I64 = ir.IntType(32), ir.IntType(64)
_BYTES = ir.VectorType(ir.IntType(8), CODE_BYTES)
_WORDS = ir.VectorType(ir.IntType(16), CODE_BYTES // 2)


def _add_pairs(builder: Any, total: Any, codes: list[Any], weights: list[Any]) -> Any:
    """total <8 x i32> and the products of bytes; 4 * 15 * 127 fits the 16 bits between."""
    lanes = ir.VectorType(_I32, CODE_BYTES // 4)
    low, high = (
        call(builder, "llvm.x86.avx2.pmadd.ub.sw", _WORDS, [code, weight])
        for code, weight in zip(codes, weights, strict=True)
    )
    ones = ir.Constant(_WORDS, [1] * _WORDS.count)
    return builder.add(total, call(builder, "llvm.x86.avx2.pmadd.wd", lanes, [builder.add(low, high), ones]))


def _add_lanes(builder: Any, total: Any, codes: list[Any], weights: list[Any]) -> Any:
    """total <32 x i32> and the products of bytes, on any processor."""
    for code, weight in zip(codes, weights, strict=True):
        wide = ir.VectorType(_I32, CODE_BYTES)
        product = builder.mul(builder.zext(code, wide), builder.sext(weight, wide))
        total = builder.add(total, product)
    return total


def _total(builder: Any, vector: Any) -> Any:
    """The sum of a vector's lanes."""
    while (half := vector.type.count // 2) > 0:
        parts = [
            builder.shuffle_vector(
                vector, vector, ir.Constant(ir.VectorType(_I32, half), list(range(start, start + half)))
            )
            for start in (0, half)
        ]
        vector = builder.add(*parts)
    return builder.extract_element(vector, ir.Constant(_I32, 0))


def code_dots(pairwise: bool) -> Callable[..., Any]:
    """(codes, a, b, c, d, even, odd, at, size, out, out_at): out[out_at + 0..3] = dot products of the `size` bytes of
    codes at the offsets a, b, c, d with the weights from `at` on: `even` [size] of the codes in the low halves of
    bytes, `odd` [size] of those in the high halves. codes uint8, weights int8, out int32; all flat. `pairwise` needs
    AVX2."""

    def dots(
        _typing: Any, codes: Any, a: Any, b: Any, c: Any, d: Any, even: Any, odd: Any, at: Any, size: Any, out: Any,
        out_at: Any,
    ) -> Any:  # fmt: skip
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            def pointer(array: int, offset: Any) -> Any:
                data = context.make_array(signature.args[array])(context, builder, args[array]).data
                return builder.gep(data, [offset])

            def load(base: Any, offset: Any) -> Any:
                place = builder.bitcast(builder.gep(base, [offset]), _BYTES.as_pointer())
                return builder.load(place, align=1)

            rows = [pointer(0, args[1 + i]) for i in range(TILE)]
            lines = [pointer(array, args[7]) for array in (5, 6)]
            zero = ir.Constant(lanes, [0] * lanes.count)
            sums = [cgutils.alloca_once(builder, lanes) for _ in rows]
            for total in sums:
                builder.store(zero, total)
            with cgutils.for_range(builder, builder.sdiv(args[8], ir.Constant(_I64, CODE_BYTES))) as loop:
                here = builder.mul(loop.index, ir.Constant(_I64, CODE_BYTES))
                weights = [load(line, here) for line in lines]
                for row, total in zip(rows, sums, strict=True):
                    both = load(row, here)
                    low = builder.and_(both, ir.Constant(_BYTES, [15] * CODE_BYTES))
                    high = builder.lshr(both, ir.Constant(_BYTES, [4] * CODE_BYTES))
                    builder.store(add(builder, builder.load(total), [low, high], weights), total)
            for i, total in enumerate(sums):
                into = pointer(9, builder.add(args[10], ir.Constant(_I64, i)))
                builder.store(_total(builder, builder.load(total)), into)
            return context.get_dummy_value()

        lanes = ir.VectorType(_I32, CODE_BYTES // 4 if pairwise else CODE_BYTES)
        add = _add_pairs if pairwise else _add_lanes
        i = types.int64
        return types.void(codes, i, i, i, i, even, odd, i, i, out, i), build

    tile: Callable[..., Any] = intrinsic(dots)
    return tile
