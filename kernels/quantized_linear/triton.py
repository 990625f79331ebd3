"""The product on a GPU for few rows of activations: codes are read once, and widened in registers.

Each program makes the sums of some output channels for all rows. With many rows the plain form is faster, which
multiplies dequantised pieces.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from moorage.kernels.code_kinds import PANEL, CodeKind
from moorage.kernels.quantized_linear.matrix import INT4_ZERO, WORD_CODES, QuantizedMatrix
from moorage.kernels.triton_support import power_of_2

FEW_ROWS = 32
"""Rows of activations up to which this kernel is taken. An estimate; no GPU has been measured."""
LEAST_ROWS = 16
"""Rows of a tile, which matrix units ask for."""
BLOCK_OUT, BLOCK_IN = 32, 64
_INT4, _TABLE4, _INT8, _FLOAT8 = range(4)
_KINDS = {
    CodeKind.INT4: _INT4,
    CodeKind.TABLE4: _TABLE4,
    CodeKind.INT8: _INT8,
    CodeKind.FLOAT8: _FLOAT8,
}


@triton.jit
def _product(
    x,
    codes,
    scales,
    minima,
    table,
    out,
    num_x,
    num_rows,
    WIDTH: tl.constexpr,
    GROUP: tl.constexpr,
    KIND: tl.constexpr,
    HAS_MINIMA: tl.constexpr,
    ZERO: tl.constexpr,
    LANES: tl.constexpr,
    WORD: tl.constexpr,
    PAD_X: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
):
    row = tl.arange(0, PAD_X)
    channel = tl.program_id(0) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    inside = channel < num_rows
    panel, lane = (channel // LANES).to(tl.int64), channel % LANES
    total = tl.zeros((PAD_X, BLOCK_OUT), tl.float32)
    for first in range(0, WIDTH, BLOCK_IN):
        k = first + tl.arange(0, BLOCK_IN)
        both = (k < WIDTH)[:, None] & inside[None, :]
        if KIND == 0 or KIND == 1:
            at = (panel[None, :] * (WIDTH // WORD) + (k // WORD)[:, None]) * LANES + lane[None, :]
            word = tl.load(codes + at, mask=both, other=0)
            code = (word >> (4 * (k % WORD))[:, None]) & 15
        else:
            at = (panel[None, :] * WIDTH + k[:, None]) * LANES + lane[None, :]
            code = tl.load(codes + at, mask=both, other=0)
        if KIND == 1:
            value = tl.load(table + code)
        elif KIND == 3:
            short = code.to(tl.int16)
            bits = ((short & 128) << 8) | ((short & 127) << 7)
            value = bits.to(tl.float16, bitcast=True).to(tl.float32) * 256.0
        elif KIND == 0 and not HAS_MINIMA:
            value = (code - ZERO).to(tl.float32)
        else:
            value = code.to(tl.float32)
        group = (panel[None, :] * (WIDTH // GROUP) + (k // GROUP)[:, None]) * LANES + lane[None, :]
        value *= tl.load(scales + group, mask=both, other=0.0).to(tl.float32)
        if HAS_MINIMA:
            value += tl.load(minima + group, mask=both, other=0.0).to(tl.float32)
        rows = (row < num_x)[:, None] & (k < WIDTH)[None, :]
        values = tl.load(x + row[:, None] * WIDTH + k[None, :], mask=rows, other=0.0)
        total = tl.dot(values, value.to(values.dtype), total, input_precision="ieee")
    place = out + row[:, None] * num_rows + channel[None, :]
    tl.store(place, total.to(out.dtype.element_ty), mask=(row < num_x)[:, None] & inside[None, :])


def quantized_linear(x: Tensor, matrix: QuantizedMatrix) -> Tensor:
    """See the package; for few rows."""
    num_x, (num_rows, width) = x.shape[0], matrix.shape
    out = torch.empty(num_x, num_rows, dtype=x.dtype, device=x.device)
    if num_x:
        _product[(triton.cdiv(num_rows, BLOCK_OUT),)](
            x.contiguous(),
            matrix.codes,
            matrix.scales,
            matrix.scales if matrix.minima is None else matrix.minima,
            matrix.scales if matrix.table is None else matrix.table,
            out,
            num_x,
            num_rows,
            width,
            matrix.group_size,
            _KINDS[matrix.kind],
            matrix.minima is not None,
            INT4_ZERO,
            PANEL,
            WORD_CODES,
            power_of_2(num_x, LEAST_ROWS),
            BLOCK_OUT,
            BLOCK_IN,
            num_warps=4,
        )
    return out
