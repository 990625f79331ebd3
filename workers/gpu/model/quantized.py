"""Weights that are kept quantised: how float ones are quantised, and matrices of several parts.

A checkpoint's own codes become a matrix by `pack`; value = scale * code + minimum fits Q4_0, Q4_1, Q4_K, Q5, Q6_K,
Q8_0, AWQ, GPTQ, FP8 and, by a table of 16 values, IQ4_NL and MXFP4.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from moorage.kernels.quantized_linear import CodeKind, QuantizedMatrix, dequantize, dequantize_rows, pack
from moorage.workers.gpu.model.matrix_kind import MatrixKind

__all__ = [
    "CodeKind",
    "Matrix",
    "QuantizedMatrix",
    "ReorderedMatrix",
    "StackedMatrix",
    "dequantize",
    "dequantize_rows",
    "empty_matrix",
    "moved",
    "pack",
    "quantize",
]


@dataclass(frozen=True, slots=True)
class ReorderedMatrix:
    """A matrix whose columns stand in another order than input channels do (GPTQ's act-order)."""

    matrix: QuantizedMatrix
    order: Tensor
    """int64 [in], or [experts, in] for the matrices of all experts: the input channel of each column."""

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.matrix.shape

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return self.matrix.nbytes + self.order.nbytes


@dataclass(frozen=True, slots=True)
class StackedMatrix:
    """Matrices of the same width, one below the other, for instance query, key and value of different types."""

    parts: tuple[Tensor | QuantizedMatrix | ReorderedMatrix, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return sum(part.shape[0] for part in self.parts), self.parts[0].shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.nbytes for part in self.parts)


Matrix = Tensor | QuantizedMatrix | ReorderedMatrix | StackedMatrix
"""What `linear` multiplies with."""


def empty_matrix(
    shape: tuple[int, int], kind: MatrixKind, device: torch.device | str, num_experts: int = 0
) -> QuantizedMatrix | ReorderedMatrix:
    """A matrix of `kind`, or the matrices of `num_experts` below one another, that holds nothing yet."""
    matrix = QuantizedMatrix.empty(
        shape,
        kind.group_size,
        kind.code,
        has_minima=kind.has_minima,
        scale_dtype={2: torch.float16, 4: torch.float32}[kind.scale_bytes],
        table=torch.zeros(16) if kind.code is CodeKind.TABLE4 else None,
        device=device,
    )
    if not kind.has_order:
        return matrix
    order = torch.arange(shape[1], device=device)
    return ReorderedMatrix(matrix, order.repeat(num_experts, 1) if num_experts else order)


def moved(matrix: Matrix, device: torch.device) -> Matrix:
    """A copy on `device`, which may be under way."""

    def to(tensor: Tensor) -> Tensor:
        return tensor.to(device, non_blocking=True)

    match matrix:
        case Tensor():
            return to(matrix)
        case QuantizedMatrix(codes, scales, minima, table):
            return QuantizedMatrix(
                to(codes),
                to(scales),
                None if minima is None else to(minima),
                None if table is None else to(table),
                matrix.num_rows,
            )
        case ReorderedMatrix(inner, order):
            copied = moved(inner, device)
            assert isinstance(copied, QuantizedMatrix)
            return ReorderedMatrix(copied, to(order))
        case StackedMatrix(parts):
            copies = (moved(part, device) for part in parts)
            return StackedMatrix(tuple(part for part in copies if not isinstance(part, StackedMatrix)))


def quantize(weight: Tensor, bits: int, group_size: int) -> QuantizedMatrix:
    """The nearest codes to a float `weight` [out, in]: 4 bits with minima (as Q4_1), 8 bits without (as Q8_0)."""
    groups = weight.float().contiguous().view(weight.shape[0], -1, group_size)
    if bits == 8:
        scales = (groups.abs().amax(-1) / 127).half()
        codes = (groups / _divisor(scales)).round().clamp(-127, 127).to(torch.int8)
        return pack(codes.flatten(1), scales, bits=8)
    low, high = groups.aminmax(dim=-1)
    scales, minima = ((high - low) / 15).half(), low.half()
    codes = ((groups - minima.float().unsqueeze(-1)) / _divisor(scales)).round().clamp(0, 15).to(torch.uint8)
    return pack(codes.flatten(1), scales, minima, bits=4)


def _divisor(scales: Tensor) -> Tensor:
    """`scales` [out, groups] to divide groups by; 1 where a scale is 0."""
    return torch.where(scales == 0, 1, scales.float()).unsqueeze(-1)
