"""Dequantises panels into the form in which torch multiplies with them on a CPU: channel by channel, as they lie."""

# ruff: noqa: ARG001 - the arguments of an intrinsic are its signature; their values come in `args`.

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from moorage.kernels.code_kinds import PANEL, CodeKind
from moorage.kernels.compiling import njit
from moorage.kernels.numba_flags import SERIAL, num_workers
from moorage.kernels.quantized_linear import lanes
from moorage.kernels.quantized_linear.matrix import WORD_CODES, QuantizedMatrix
from moorage.kernels.quantized_linear.panels import FLOAT8, INT4, TABLE4, scales_of, weights_of
from moorage.kernels.simd_lanes import FLOAT, FLOATS, I8, I16, I32, I64, all_lanes, multiply_add
from moorage.kernels.threads import run_each

_LIKE = {
    CodeKind.INT4: np.int32(0),
    CodeKind.TABLE4: np.uint32(0),
    CodeKind.INT8: np.int8(0),
    CodeKind.FLOAT8: np.uint8(0),
}


def dequantize_panels(matrix: QuantizedMatrix, space: Tensor) -> Tensor:
    """The transposed weights [in, panels * PANEL], in `space` [in, at least as many], float32 or bfloat16."""
    num_panels, groups = matrix.scales.shape[:2]
    out = space[:, : num_panels * PANEL]
    assert out.stride(1) == 1
    addresses = np.array(
        [0 if t is None else t.data_ptr() for t in (matrix.codes, matrix.scales, matrix.minima, matrix.table)]
    )
    sizes = np.array([matrix.codes[0].nbytes, matrix.scales[0].nbytes, PANEL * out.element_size()], np.int64)
    words, wide = matrix.group_size // WORD_CODES, matrix.scales.dtype == torch.float32
    target, stride = out.data_ptr(), out.stride(0) * out.element_size()
    like, to = _LIKE[matrix.kind], np.uint16(0) if out.dtype == torch.bfloat16 else np.float32(0)
    workers = num_workers(out.nbytes)
    shares = min(num_panels, workers)

    def run(share: int) -> None:
        begin, end = num_panels * share // shares, num_panels * (share + 1) // shares
        _dequantize(like, to, addresses, sizes, wide, words, groups, target, stride, begin, end)

    run_each(run, shares, workers)
    return out


@njit(**SERIAL)
def _dequantize(
    like: Any, to: Any, addresses: Any, sizes: Any, wide: Any, words: Any, groups: Any, out: Any, stride: Any,
    begin: Any, end: Any,
) -> None:  # fmt: skip
    """Panels [begin, end) of one matrix to `out`, whose rows are `stride` bytes apart."""
    codes, scales, minima, table = addresses
    for panel in range(begin, end):
        lowest = minima + panel * sizes[1] if minima != 0 else np.int64(0)
        _panel(
            like, to, codes + panel * sizes[0], scales + panel * sizes[1], lowest, table, np.int64(wide), words,
            groups, out + panel * sizes[2], stride,
        )  # fmt: skip


@intrinsic
def _panel(
    _typing: Any, like: Any, to: Any, codes: Any, scales: Any, minima: Any, table: Any, is_wide: Any, words: Any,
    groups: Any, out: Any, stride: Any,
) -> Any:  # fmt: skip
    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = signature.args[0]
        codes, scales, minima, table, is_wide, words, groups, out, stride = args[2:]
        base = lanes.pointer(builder, codes, I32 if kind in (INT4, TABLE4) else I8)
        wide, has_minima = builder.trunc(is_wide, ir.IntType(1)), builder.icmp_unsigned("!=", minima, I64(0))
        values = lanes.load(builder, lanes.pointer(builder, table, FLOAT), FLOAT) if kind == TABLE4 else None
        # A code of 4 bits reads as 1 + code / 16; without minima it stands for code - 8.
        by = all_lanes(FLOAT, {INT4: 16.0, FLOAT8: 256.0}.get(kind, 1.0))
        offset = builder.select(has_minima, all_lanes(FLOAT, 1.0), all_lanes(FLOAT, 1.5))
        lowest = cgutils.alloca_once(builder, FLOATS)
        with cgutils.for_range(builder, groups) as loop:
            scale = builder.fmul(scales_of(builder, scales, wide, loop.index), by)
            builder.store(all_lanes(FLOAT, 0.0), lowest)
            with builder.if_then(has_minima):
                builder.store(scales_of(builder, minima, wide, loop.index), lowest)
            with cgutils.for_range(builder, words) as inner:
                word = builder.add(builder.mul(loop.index, words), inner.index)
                for channel, weight in enumerate(weights_of(builder, kind, base, word, values)):
                    value = builder.fsub(weight, offset) if kind == INT4 else weight
                    value = multiply_add(builder, value, scale, builder.load(lowest))
                    row = builder.add(builder.mul(word, I64(WORD_CODES)), I64(channel))
                    place = builder.add(out, builder.mul(row, stride))
                    if signature.args[1] == types.float32:
                        lanes.store(builder, value, lanes.pointer(builder, place, FLOAT))
                    else:
                        lanes.store_bfloat(builder, value, lanes.pointer(builder, place, I16))
        return context.get_dummy_value()

    return types.void(like, to, *[types.int64] * 9), build
