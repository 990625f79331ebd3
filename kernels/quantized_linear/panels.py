"""Register tiles of the product: PANEL output channels with one, two or four rows of activations.

Codes are widened in registers, each once for all rows of activations. A row's sum is made in the same order in every
tile, so that its result does not depend on what else is in a batch. All arguments are addresses and numbers.
"""

# ruff: noqa: ARG001 - the arguments of an intrinsic are its signature; their values come in `args`.

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from moorage.kernels.code_kinds import PANEL
from moorage.kernels.quantized_linear import lanes
from moorage.kernels.quantized_linear.matrix import WORD_CODES
from moorage.kernels.simd_lanes import FLOAT, FLOATS, HALF, I8, I16, I32, I64, all_lanes, multiply_add

INT4, TABLE4, INT8, FLOAT8 = types.int32, types.uint32, types.int8, types.uint8
F32, BF16, F16 = types.float32, types.int16, types.uint16
"""The types of the argument `like` of a tile, which say what the weights are. The last three lie row by row."""
_SUMS = 4
"""Running sums for each row of activations: an addition takes four cycles."""
_ONE_BITS = 0x3F800000
_CODE_SHIFT = 19
"""Where the four highest bits of a float32's fraction begin: with them a code reads as 1 + code / 16."""
ROWS = 4
"""Rows of float weights of a tile."""


def weights_of(builder: Any, kind: types.Type, codes: Any, word: Any, table: Any) -> Iterator[Any]:
    """For each of the WORD_CODES channels of `word`, the weights of PANEL rows without scale, as float32.

    A code of INT4 is 1 + code / 16; FLOAT8 is divided by 256.
    """
    if kind in (INT4, TABLE4):
        place = builder.gep(codes, [builder.mul(word, I64(PANEL))])
        lanes.prefetch(builder, place, lanes.PREFETCH_BYTES)
        packed = lanes.load(builder, place, I32)
        for channel in range(WORD_CODES):
            if kind == TABLE4:
                shifted = builder.lshr(packed, all_lanes(I32, 4 * channel))
                yield lanes.look_up(builder, table, shifted)
                continue
            right = 4 * channel - _CODE_SHIFT
            move, by = (builder.lshr, right) if right > 0 else (builder.shl, -right)
            code = builder.and_(move(packed, all_lanes(I32, by)), all_lanes(I32, 15 << _CODE_SHIFT))
            yield builder.bitcast(builder.or_(code, all_lanes(I32, _ONE_BITS)), FLOATS)
        return
    first = builder.gep(codes, [builder.mul(word, I64(PANEL * WORD_CODES))])
    for line in range(WORD_CODES * PANEL // 64):
        lanes.prefetch(builder, first, lanes.PREFETCH_BYTES + 64 * line)
    for channel in range(WORD_CODES):
        place = builder.gep(first, [I64(PANEL * channel)])
        yield lanes.load_float8(builder, place) if kind == FLOAT8 else lanes.load_float(builder, place, I8)


def scales_of(builder: Any, address: Any, is_wide: Any, group: Any) -> Any:
    """PANEL scales or minima of a group, as float32."""
    found, at = cgutils.alloca_once(builder, FLOATS), builder.mul(group, I64(PANEL))
    with builder.if_else(is_wide) as (then, otherwise):
        for branch, element in ((then, FLOAT), (otherwise, HALF)):
            with branch:
                place = lanes.pointer(builder, address, element, at)
                builder.store(lanes.load_float(builder, place, element), found)
    return builder.load(found)


def _add_group(
    builder: Any, kind: types.Type, sums: list[Any], scale: Any, group_sum: Any, has_minima: Any
) -> Any:
    """What a group adds to a row's result beside its minimum."""
    total = builder.load(sums[0])
    for more in sums[1:]:
        total = builder.fadd(total, builder.load(more))
    if kind == INT4:
        # Sums are of x * (1 + code / 16); without minima a code stands for code - 8.
        one, and_half = all_lanes(FLOAT, 1.0), all_lanes(FLOAT, 1.5)
        offset = builder.select(has_minima, one, and_half)
        total = builder.fsub(total, builder.fmul(group_sum, offset))
        scale = builder.fmul(scale, all_lanes(FLOAT, 16.0))
    if kind == FLOAT8:
        scale = builder.fmul(scale, all_lanes(FLOAT, 256.0))
    return builder.fmul(scale, total, flags=("contract",))


def _panel_tile(num_x: int) -> Callable[..., Any]:
    def tile(
        _typing: Any, like: Any, codes: Any, scales: Any, minima: Any, table: Any, is_wide: Any, words: Any,
        groups: Any, x: Any, sums: Any, out: Any, out_stride: Any,
    ) -> Any:  # fmt: skip
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kind = signature.args[0]
            codes, scales, minima, table, is_wide, words, groups, x, sums, out, out_stride = args[1:]
            element = I32 if kind in (INT4, TABLE4) else I8
            base, wide = lanes.pointer(builder, codes, element), builder.trunc(is_wide, ir.IntType(1))
            has_minima = builder.icmp_unsigned("!=", minima, I64(0))
            values = (
                lanes.load(builder, lanes.pointer(builder, table, FLOAT), FLOAT) if kind == TABLE4 else None
            )
            width, row = builder.mul(builder.mul(words, groups), I64(WORD_CODES)), range(num_x)
            lines = [lanes.pointer(builder, x, FLOAT, builder.mul(width, I64(m))) for m in row]
            totals, partial = lanes.zeros(builder, num_x), [lanes.zeros(builder, _SUMS) for _ in row]
            lanes.clear(builder, totals)
            with cgutils.for_range(builder, groups) as loop:
                for m in row:
                    lanes.clear(builder, partial[m])
                with cgutils.for_range(builder, words) as inner:
                    word = builder.add(builder.mul(loop.index, words), inner.index)
                    first = builder.mul(word, I64(WORD_CODES))
                    for channel, weight in enumerate(weights_of(builder, kind, base, word, values)):
                        for m in row:
                            place = builder.gep(lines[m], [builder.add(first, I64(channel))])
                            held = partial[m][channel % _SUMS]
                            added = multiply_add(
                                builder, weight, lanes.broadcast(builder, place), builder.load(held)
                            )
                            builder.store(added, held)
                scale = scales_of(builder, scales, wide, loop.index)
                group_sums = []
                for m in row:
                    at = builder.add(builder.mul(groups, I64(m)), loop.index)
                    group_sums.append(lanes.broadcast(builder, lanes.pointer(builder, sums, FLOAT, at)))
                    more = _add_group(builder, kind, partial[m], scale, group_sums[m], has_minima)
                    builder.store(builder.fadd(builder.load(totals[m]), more, flags=("contract",)), totals[m])
                with builder.if_then(has_minima):
                    lowest = scales_of(builder, minima, wide, loop.index)
                    for m in row:
                        added = multiply_add(builder, lowest, group_sums[m], builder.load(totals[m]))
                        builder.store(added, totals[m])
            for m in row:
                place = lanes.pointer(builder, out, FLOAT, builder.mul(out_stride, I64(m)))
                lanes.store(builder, builder.load(totals[m]), place)
            return context.get_dummy_value()

        return types.void(like, *[types.int64] * 11), build

    made: Callable[..., Any] = intrinsic(tile)
    return made


panel_1 = _panel_tile(1)
"""(like, codes, scales, minima, table, is_wide, words, groups, x, sums, out, out_stride): one panel of quantised
weights of the kind `like` with one row of activations; see `products.Field`. `words` are those of a group."""
panel_2 = _panel_tile(2)
"""`panel_1` for two rows."""
panel_4 = _panel_tile(4)
"""`panel_1` for four rows."""


def _rows_tile(num_x: int, num_rows: int) -> Callable[..., Any]:
    def tile(_typing: Any, like: Any, weights: Any, width: Any, x: Any, out: Any, out_stride: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            element = {F32: FLOAT, BF16: I16, F16: HALF}[signature.args[0]]
            weights, width, x, out, out_stride = args[1:]
            lines = [
                lanes.pointer(builder, weights, element, builder.mul(width, I64(r))) for r in range(num_rows)
            ]
            inputs = [lanes.pointer(builder, x, FLOAT, builder.mul(width, I64(m))) for m in range(num_x)]
            sums = [lanes.zeros(builder, num_rows) for _ in inputs]
            for totals in sums:
                lanes.clear(builder, totals)
            with cgutils.for_range(builder, builder.sdiv(width, I64(PANEL))) as loop:
                at = builder.mul(loop.index, I64(PANEL))
                vectors = []
                for line in lines:
                    place = builder.gep(line, [at])
                    lanes.prefetch(builder, place, lanes.PREFETCH_BYTES // num_rows)
                    vectors.append(lanes.load_float(builder, place, element))
                for source, totals in zip(inputs, sums, strict=True):
                    values = lanes.load(builder, builder.gep(source, [at]), FLOAT)
                    for vector, total in zip(vectors, totals, strict=True):
                        builder.store(multiply_add(builder, vector, values, builder.load(total)), total)
            kinds = ir.FunctionType(FLOAT, [FLOAT, FLOATS])
            reduce = cgutils.get_or_insert_function(builder.module, kinds, "llvm.vector.reduce.fadd.v16f32")
            for m, totals in enumerate(sums):
                target = lanes.pointer(builder, out, FLOAT, builder.mul(out_stride, I64(m)))
                for r, total in enumerate(totals):
                    summed = builder.call(reduce, [FLOAT(0.0), builder.load(total)], fastmath=("reassoc",))
                    builder.store(summed, builder.gep(target, [I64(r)]))
            return context.get_dummy_value()

        return types.void(like, *[types.int64] * 5), build

    made: Callable[..., Any] = intrinsic(tile)
    return made


rows_1 = _rows_tile(1, ROWS)
"""(like, weights, width, x, out, out_stride): ROWS rows of float weights, a multiple of PANEL wide, with one row of
activations."""
rows_2 = _rows_tile(2, ROWS)
"""`rows_1` for two rows of activations."""
rows_4 = _rows_tile(4, ROWS)
"""`rows_1` for four rows of activations."""
single_row = _rows_tile(1, 1)
"""`rows_1` of one row of weights."""
