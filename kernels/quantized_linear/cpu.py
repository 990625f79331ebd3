"""The product on a CPU: few rows of activations in one pass over the codes, many by torch after dequantising a piece.

Few rows are multiplied in fp32, with codes widened in registers: a core then reads 4-bit weights as fast as memory
brings them, so activations of 8 bits would save nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moorage.kernels.code_kinds import PANEL
from moorage.kernels.compiling import njit
from moorage.kernels.numba_flags import SERIAL
from moorage.kernels.quantized_linear.dequantizing import dequantize_panels
from moorage.kernels.quantized_linear.matrix import QuantizedMatrix
from moorage.kernels.quantized_linear.products import FIELDS, Field, kernel_address, run_product
from moorage.kernels.thread_team import run_units, team_for, unit_call, units_for

FEW_ROWS = 24
"""Rows of activations up to which one pass over the codes is faster than torch's product of dequantised weights."""
PIECE_BYTES = 4 << 20
"""Most memory that dequantised weights take at once: they are multiplied while they lie in the cache."""
_FLOATS = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}

Record = NDArray[np.int64]
Float32 = NDArray[np.float32]


def record_of(weight: QuantizedMatrix | Tensor) -> Record:
    """The record, see `products.Field`, of a product with `weight`, without activations and output.

    `weight` must live as long as the record is used. A float one is [out, in] and contiguous, of a width that is a
    multiple of PANEL.
    """
    record = np.zeros(FIELDS, np.int64)
    if isinstance(weight, Tensor):
        if weight.dim() != 2 or weight.shape[1] % PANEL or not weight.is_contiguous():
            raise ValueError(
                f"weight {list(weight.shape)}; expected contiguous rows of a multiple of {PANEL}"
            )
        record[Field.WEIGHTS], record[Field.KERNEL] = weight.data_ptr(), kernel_address(_FLOATS[weight.dtype])
        record[Field.ROWS], record[Field.WIDTH] = weight.shape
        return record
    for field, tensor in (
        (Field.WEIGHTS, weight.codes),
        (Field.SCALES, weight.scales),
        (Field.MINIMA, weight.minima),
        (Field.TABLE, weight.table),
    ):
        if tensor is not None:
            assert tensor.is_contiguous()
            record[field] = tensor.data_ptr()
    record[Field.ROWS], record[Field.WIDTH] = weight.shape
    record[Field.GROUPS] = weight.scales.shape[1]
    record[Field.WIDE_SCALES] = weight.scales.dtype == torch.float32
    record[Field.GROUP_BYTES] = weight.scales[0].nbytes
    record[Field.PANEL_BYTES] = weight.codes[0].nbytes
    record[Field.KERNEL] = kernel_address(weight.kind)
    return record


def quantized_linear(x: Tensor, matrix: QuantizedMatrix) -> Tensor:
    """See the package."""
    return _few_rows(x, matrix) if x.shape[0] <= FEW_ROWS else _many_rows(x, matrix)


def few_rows_linear(x: Tensor, weight: Tensor) -> Tensor:
    """x [T, in] times the transposed float `weight` [out, in], read once; in the type of x, sums in fp32."""
    return _few_rows(x, weight)


def _few_rows(x: Tensor, weight: QuantizedMatrix | Tensor) -> Tensor:
    num_panels = -(-weight.shape[0] // PANEL)
    out = torch.empty(x.shape[0], num_panels * PANEL)
    if x.shape[0] == 0:
        return out[:, : weight.shape[0]].to(x.dtype)
    record, rows = record_of(weight), x.float().contiguous().numpy()
    sums = np.empty((len(rows), record[Field.GROUPS]), np.float32)
    record[Field.X], record[Field.SUMS], record[Field.OUT] = (
        rows.ctypes.data,
        sums.ctypes.data,
        out.data_ptr(),
    )
    record[Field.NUM_X], record[Field.OUT_STRIDE] = len(rows), out.shape[1]
    sum_groups(rows, sums)
    team = team_for(weight.nbytes)
    run_panels(team, units_for(team, num_panels), record.ctypes.data, num_panels)
    return out[:, : weight.shape[0]].to(x.dtype).contiguous()


def _many_rows(x: Tensor, matrix: QuantizedMatrix) -> Tensor:
    compute = torch.float32 if x.dtype == torch.float16 else x.dtype
    rows, out = x.to(compute), torch.empty(x.shape[0], matrix.num_rows, dtype=compute)
    num_panels = matrix.codes.shape[0]
    at_once = max(1, PIECE_BYTES // (matrix.width * PANEL * compute.itemsize))
    piece = torch.empty(matrix.width, min(at_once, num_panels) * PANEL, dtype=compute)
    for first in range(0, num_panels, at_once):
        count = min(at_once, num_panels - first)
        begin, end = first * PANEL, min((first + count) * PANEL, matrix.num_rows)
        weights = dequantize_panels(matrix.rows(begin, end), piece)
        torch.mm(rows, weights[:, : end - begin], out=out[:, begin:end])
    return out.to(x.dtype)


@njit(**SERIAL)
def sum_groups(x: Float32, sums: Float32) -> None:
    """sums[t, g] = the sum of the activations x[t] of group g; nothing for no groups."""
    size = x.shape[1] // max(1, sums.shape[1])
    for t in range(sums.shape[0]):
        for g in range(sums.shape[1]):
            total = np.float32(0)
            for i in range(g * size, (g + 1) * size):
                total += x[t, i]
            sums[t, g] = total


@njit(**SERIAL)
def run_panels(team: Any, units: Any, record: Any, panels: Any) -> None:
    """All panels of the product of which `record` is the address, by a team that takes them in so many units."""
    run_units(team, units, *unit_call(_panels_unit, (units, record, panels)))


@njit(**SERIAL)
def _panels_unit(unit: Any, units: Any, record: Any, panels: Any) -> None:
    run_product(record, panels * unit // units, panels * (unit + 1) // units)
