"""The product in plain torch operations, for any device: panels of the weights are dequantised, then multiplied."""

from __future__ import annotations

import torch
from torch import Tensor

from moorage.kernels.code_kinds import PANEL
from moorage.kernels.quantized_linear.matrix import QuantizedMatrix
from moorage.kernels.quantized_linear.packing import dequantize

PIECE_BYTES = 16 << 20
"""Most memory that dequantised weights take at once."""


def quantized_linear(x: Tensor, matrix: QuantizedMatrix) -> Tensor:
    """See the package."""
    out = torch.empty(x.shape[0], matrix.num_rows, dtype=x.dtype, device=x.device)
    at_once = max(1, PIECE_BYTES // (4 * matrix.width * PANEL)) * PANEL
    for begin in range(0, matrix.num_rows, at_once):
        end = min(begin + at_once, matrix.num_rows)
        torch.mm(x, dequantize(matrix.rows(begin, end), x.dtype).t(), out=out[:, begin:end])
    return out
