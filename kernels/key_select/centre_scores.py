"""The largest weight that a block's centres let its keys have, four blocks at a time, in vectors of 64 bytes.

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

from moorage.kernels.simd import LINE_BYTES
from moorage.kernels.simd_lanes import FLOAT, HALF, I8, I16, I32, I64, call, host_has, multiply_add
from moorage.kernels.simd_words import all_floats, ask, larger, load, load_one, offset, pick, splat

BLOCKS, CENTRES = 4, 4
"""Blocks whose sums lie in one vector, and the centres of each."""
AHEAD = 128
"""Blocks whose centres are asked of the memory before they are needed."""
_BYTES = 64
_CODES, _SUMS, _FLOATS = ir.VectorType(I8, _BYTES), ir.VectorType(I32, 16), ir.VectorType(FLOAT, 16)
_PAIRS = ir.VectorType(I16, _BYTES // 2)


def _add_dots(builder: Any, total: Any, codes: Any, query: Any) -> Any:
    """total plus, in each int32 lane, the dot product of the four unsigned bytes and the four signed bytes there."""
    if host_has("avx512vnni"):
        name, words = (
            "llvm.x86.avx512.vpdpbusd.512",
            [builder.bitcast(each, _SUMS) for each in (codes, query)],
        )
        return call(builder, name, _SUMS, [total, *words])
    wide = ir.VectorType(I32, _BYTES)
    products = builder.mul(builder.zext(codes, wide), builder.sext(query, wide))
    for first in range(4):
        total = builder.add(total, pick(builder, products, products, list(range(first, _BYTES, 4))))
    return total


def _halves(builder: Any, codes: Any) -> tuple[Any, Any]:
    """The lower and the upper four bits of each byte."""
    pairs = builder.bitcast(codes, _PAIRS)
    upper = builder.bitcast(builder.lshr(pairs, ir.Constant(_PAIRS, [4] * 32)), _CODES)
    mask = ir.Constant(_CODES, [15] * _BYTES)
    return builder.and_(codes, mask), builder.and_(upper, mask)


def _joined(builder: Any, sums: list[Any]) -> Any:
    """The sums over quads, [vector, centre], of four vectors [quad, centre]."""
    pairs = []
    for left, right in (sums[:2], sums[2:]):
        low = pick(builder, left, right, [*range(8), *range(16, 24)])
        pairs.append(builder.add(low, pick(builder, left, right, [*range(8, 16), *range(24, 32)])))
    left, right = pairs
    lanes = [8 * part + lane for part in range(4) for lane in range(4)]
    low, high = (pick(builder, left, right, [lane + by for lane in lanes]) for by in (0, 4))
    return builder.add(low, high)


def _numbers(builder: Any, blocks: list[Any], by: Any) -> Any:
    """The four fp16 that lie `by` bytes behind each of four addresses, as float32 [block, centre]."""
    four = [load(builder, builder.add(block, by), HALF, CENTRES) for block in blocks]
    left, right = (pick(builder, four[at], four[at + 1], list(range(8))) for at in (0, 2))
    return builder.fpext(pick(builder, left, right, list(range(16))), _FLOATS)


def _best_of_block(builder: Any, values: Any) -> Any:
    """The largest of each four lanes, [4]."""
    for step in (1, 2):
        others = pick(builder, values, values, [lane ^ step for lane in range(16)])
        values = larger(builder, values, others)
    return pick(builder, values, values, [0, 4, 8, 12])


def _dots_of(
    builder: Any, blocks: list[Any], code_bytes: Any, queries: list[Any], parts: int | None
) -> list[Any]:
    """The dot products [quad, centre], by query and block, of `parts` vectors of codes, or of code_bytes bytes."""
    held = [[cgutils.alloca_once(builder, _SUMS) for _ in blocks] for _ in queries]
    for totals in held:
        for total in totals:
            builder.store(ir.Constant(_SUMS, [0] * 16), total)

    def add(at: Any) -> None:
        own = [builder.add(query, builder.mul(at, I64(2))) for query in queries]
        pairs = [
            [load(builder, offset(builder, query, by), I8, _BYTES) for by in (0, _BYTES)] for query in own
        ]
        for r, block in enumerate(blocks):
            low, high = _halves(builder, load(builder, builder.add(block, at), I8, _BYTES))
            for g, (first, second) in enumerate(pairs):
                total = _add_dots(builder, builder.load(held[g][r]), low, first)
                builder.store(_add_dots(builder, total, high, second), held[g][r])

    if parts is None:
        with cgutils.for_range(builder, builder.udiv(code_bytes, I64(_BYTES))) as part:
            add(builder.mul(part.index, I64(_BYTES)))
    else:
        for part in range(parts):
            add(I64(part * _BYTES))
    return [[builder.load(total) for total in totals] for totals in held]


def _centre_scores(group: int, parts: int | None) -> Callable[..., Any]:
    def scores(
        _typing: Any, blocks: Any, count: Any, shift: Any, code_bytes: Any, queries: Any, terms: Any, less: Any,
        joins: Any, out: Any,
    ) -> Any:  # fmt: skip
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            blocks, count, shift, code_bytes, queries, terms, less, joins, out = args
            rows = [builder.add(queries, builder.mul(code_bytes, I64(2 * g))) for g in range(group)]
            if parts is not None:
                code_bytes = I64(parts * _BYTES)
            with cgutils.for_range(builder, count) as loop:
                listed = builder.add(blocks, builder.mul(loop.index, I64(8 * BLOCKS)))
                four, coming = (
                    [
                        builder.add(
                            builder.load(
                                builder.inttoptr(offset(builder, listed, at + 8 * r), I64.as_pointer()),
                                align=8,
                            ),
                            shift,
                        )
                        for r in range(BLOCKS)
                    ]
                    for at in (0, 8 * AHEAD)
                )
                for block in coming:
                    ask(builder, block, builder.add(builder.udiv(code_bytes, I64(LINE_BYTES)), I64(1)))
                dots = _dots_of(builder, four, code_bytes, rows, parts)
                scales = _numbers(builder, four, code_bytes)
                radii = _numbers(builder, four, builder.add(code_bytes, I64(2 * CENTRES)))
                best = all_floats(float("-inf"), 16)
                for g in range(group):
                    sums = builder.sitofp(_joined(builder, dots[g]), _FLOATS)
                    factor, added, share = (
                        splat(builder, load_one(builder, offset(builder, terms, 12 * g + 4 * i), FLOAT), 16)
                        for i in range(3)
                    )
                    other = splat(builder, load_one(builder, offset(builder, less, 4 * g), FLOAT), 16)
                    inner = multiply_add(builder, sums, factor, added)
                    reach = multiply_add(builder, radii, share, builder.fneg(other))
                    best = larger(builder, multiply_add(builder, inner, scales, reach), best)
                into = builder.add(out, builder.mul(loop.index, I64(4 * BLOCKS)))
                found, before = _best_of_block(builder, best), load(builder, into, FLOAT, BLOCKS)
                kept = builder.select(joins, larger(builder, before, found), found)
                builder.store(kept, builder.inttoptr(into, kept.type.as_pointer()), align=4)
            return context.get_dummy_value()

        i = types.int64
        return types.void(i, i, i, i, i, i, i, types.boolean, i), build

    made: Callable[..., Any] = intrinsic(scores)
    return made


CENTRE_SCORES = tuple(_centre_scores(group, None) for group in range(1, 5))
"""(blocks, count, shift, code_bytes, queries, terms, less, joins, out) by the number of queries, 1 to 4: float32 of
4 * count blocks from `out` on.

`blocks` is a list of addresses, int64. `shift` bytes behind each lie the centres of a block, as
`kernels.key_codes.centres` stores them: `code_bytes` bytes and eight fp16. AHEAD more addresses follow in the list,
whose centres are asked of the memory. `queries` are int8 [group, 2 * code_bytes], of each query
[quads, 4 centres, 4], the same four channels for each centre; `terms` are [group, 3] float32. A block's score is the
largest over its centres and queries of scale * (terms[0] * sum + terms[1]) + terms[2] * radius - less, and of what
`out` holds, where `joins`."""
CENTRE_SCORES_64 = tuple(_centre_scores(group, 2) for group in range(1, 5))
"""`CENTRE_SCORES` of 64 channels."""
