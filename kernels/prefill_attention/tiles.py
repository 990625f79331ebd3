"""Register tiles of attention in LLVM's language: a product of packed operands.

Operands are of 4-byte words: a float32, or a pair of bfloat16 whose products are added in one instruction. All
arguments are addresses in bytes and numbers; nothing is checked.
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
    I32,
    I64,
    LANES,
    WORDS,
    all_lanes,
    call,
    host_has,
    multiply_add,
    splat,
)
from moorage.kernels.simd_softmax import BF16, BFloat, load, store

ROWS = 6
"""Rows of a tile: with WIDTHS[0] vectors of columns the sums fill most registers."""

_PAIRS = ir.VectorType(BFloat(), 2 * LANES)


HAS_PAIRS = host_has("avx512bf16") and host_has("avx512f")
"""Whether this CPU multiplies pairs of bfloat16."""
WIDTHS = (4, 2, 1) if host_has("avx512f") else (1,)
"""Vectors of columns that a tile may have."""


def _multiply(builder: Any, is_pairs: bool, word: Any, column: Any, total: Any) -> Any:
    if not is_pairs:
        return multiply_add(builder, builder.bitcast(word, FLOATS), builder.bitcast(column, FLOATS), total)
    operands = [total, builder.bitcast(word, _PAIRS), builder.bitcast(column, _PAIRS)]
    return call(builder, "llvm.x86.avx512bf16.dpbf16ps.512", FLOATS, operands)


def _product_tile(width: int) -> Callable[..., Any]:
    def tile(
        _typing: Any, like: Any, a: Any, a_stride: Any, b: Any, b_stride: Any, count: Any, out: Any,
        out_stride: Any, fresh: Any,
    ) -> Any:  # fmt: skip
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _, a, a_stride, b, b_stride, count, out, out_stride, fresh = args
            is_pairs = signature.args[0] == BF16
            columns = [I64(4 * LANES * j) for j in range(width)]
            lines = [builder.add(a, builder.mul(a_stride, I64(i))) for i in range(ROWS)]
            sums = [[cgutils.alloca_once(builder, FLOATS) for _ in columns] for _ in lines]
            places = [
                [builder.add(builder.add(out, builder.mul(out_stride, I64(i))), at) for at in columns]
                for i in range(ROWS)
            ]
            for held, into in zip(sums, places, strict=True):
                for total, place in zip(held, into, strict=True):
                    builder.store(
                        builder.select(fresh, all_lanes(FLOAT, 0.0), load(builder, place, FLOATS)), total
                    )
            with cgutils.for_range(builder, count) as loop:
                step = builder.add(b, builder.mul(b_stride, loop.index))
                vectors = [load(builder, builder.add(step, at), WORDS) for at in columns]
                offset = builder.mul(loop.index, I64(4))
                for line, held in zip(lines, sums, strict=True):
                    word = splat(builder, load(builder, builder.add(line, offset), I32))
                    for vector, total in zip(vectors, held, strict=True):
                        builder.store(_multiply(builder, is_pairs, word, vector, builder.load(total)), total)
            for held, into in zip(sums, places, strict=True):
                for total, place in zip(held, into, strict=True):
                    store(builder, builder.load(total), place)
            return context.get_dummy_value()

        return types.void(like, *[types.int64] * 7, types.boolean), build

    made: Callable[..., Any] = intrinsic(tile)
    return made


product_4 = _product_tile(4)
"""(like, a, a_stride, b, b_stride, count, out, out_stride, fresh): out[i, c] += the sum over k < count of word k of
row i of `a` times word (k, c) of `b`, for ROWS rows and 4 * LANES columns; unless `fresh`, to what `out` holds."""
product_2 = _product_tile(2)
"""`product_4` of 2 * LANES columns."""
product_1 = _product_tile(1)
"""`product_4` of LANES columns."""
