"""Products with quantised weights."""

from __future__ import annotations

from torch import Tensor

from moorage.kernels.code_kinds import PANEL, CodeKind
from moorage.kernels.quantized_linear import cpu, gpu
from moorage.kernels.quantized_linear.matrix import QuantizedMatrix
from moorage.kernels.quantized_linear.packing import dequantize, dequantize_rows, pack, unpack
from moorage.kernels.triton_support import has_triton

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
    if not x.is_cuda:
        return cpu.quantized_linear(x, matrix)
    if has_triton():
        from moorage.kernels.quantized_linear import triton

        if x.shape[0] <= triton.FEW_ROWS:
            return triton.quantized_linear(x, matrix)
    return gpu.quantized_linear(x, matrix)
