"""Products with quantised weights."""

from __future__ import annotations

from torch import Tensor

from moorage.kernels.quantized_linear import cpu, gpu
from moorage.kernels.quantized_linear.matrix import PANEL, CodeKind, QuantizedMatrix
from moorage.kernels.quantized_linear.packing import dequantize, dequantize_rows, pack, unpack

__all__ = [
    "PANEL",
    "CodeKind",
    "QuantizedMatrix",
    "dequantize",
    "dequantize_rows",
    "pack",
    "quantized_linear",
    "unpack",
]


def quantized_linear(x: Tensor, matrix: QuantizedMatrix) -> Tensor:
    """x [T, in] times the transposed matrix: [T, out] in the type of x, sums in fp32."""
    return (gpu if x.is_cuda else cpu).quantized_linear(x, matrix)
