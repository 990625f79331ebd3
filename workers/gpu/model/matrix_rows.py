"""Rows of a quantised matrix that one part of a checkpoint fills."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from moorage.kernels.quantized_linear import CodeKind, QuantizedMatrix
from moorage.workers.gpu.model.quantized import ReorderedMatrix, quantize

QUANTIZED_AT_ONCE = 1 << 24
"""Weights that are quantised at once: what this takes on the way is several times as much."""


@dataclass(frozen=True, slots=True)
class MatrixRows:
    """`num_rows` rows from each of `begins` on: one piece of a matrix, or one for each expert."""

    matrix: QuantizedMatrix | ReorderedMatrix
    begins: tuple[int, ...]
    num_rows: int
    is_stack: bool = False
    """Whether the part is [experts, out, in]."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the part."""
        inner = (self.num_rows, self.matrix.shape[1])
        return (len(self.begins), *inner) if self.is_stack else inner

    @property
    def code(self) -> CodeKind:
        """What codes of the matrix stand for."""
        return self._inner().kind

    def __iter__(self) -> Iterator[MatrixRows]:
        """The rows of each expert."""
        return (self[expert] for expert in range(len(self.begins)))

    def __getitem__(self, expert: int) -> MatrixRows:
        """The rows of one expert."""
        matrix = self.matrix
        if isinstance(matrix, ReorderedMatrix):
            matrix = ReorderedMatrix(matrix.matrix, matrix.order[expert])
        return replace(self, matrix=matrix, begins=(self.begins[expert],), is_stack=False)

    def part(self, begin: int, end: int) -> MatrixRows:
        """Rows [begin, end) of one piece; both are multiples of PANEL, or `end` is its end."""
        return replace(self, begins=(self.begins[0] + begin,), num_rows=end - begin)

    def copy_(self, weights: Tensor) -> None:
        """Quantises float weights of `shape`, on the device of the matrix."""
        inner = self._inner()
        bits, group_size = inner.kind.bits, inner.group_size
        assert inner.kind in (CodeKind.INT4, CodeKind.INT8)
        step = max(16, QUANTIZED_AT_ONCE // weights.shape[-1] // 16 * 16)
        for begin, piece in zip(self.begins, weights if self.is_stack else [weights], strict=True):
            for row in range(0, self.num_rows, step):
                part = quantize(piece[row : row + step].to(inner.device), bits, group_size)
                inner.rows(begin + row, begin + row + part.num_rows).copy_(part)

    def copy_matrix(self, matrix: QuantizedMatrix | ReorderedMatrix) -> None:
        """Copies a quantised part, [out, in], of the same kind."""
        inner = matrix
        if isinstance(inner, ReorderedMatrix):
            if isinstance(self.matrix, ReorderedMatrix):
                self.matrix.order.copy_(inner.order)
            inner = inner.matrix
        (begin,) = self.begins
        self._inner().rows(begin, begin + self.num_rows).copy_(inner)

    def is_finite(self) -> bool:
        """Whether no scale or minimum is NaN or infinite, as those of weights that are not finite are not."""
        tensors = [
            tensor
            for begin in self.begins
            for tensor in list(self._inner().rows(begin, begin + self.num_rows).row_tensors())[1:]
        ]
        return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)

    def _inner(self) -> QuantizedMatrix:
        return self.matrix.matrix if isinstance(self.matrix, ReorderedMatrix) else self.matrix


Target = Tensor | MatrixRows
"""What a part of a checkpoint is copied to."""


def is_filled_finite(target: Target) -> bool:
    """Whether no element that was filled is NaN or infinite."""
    return is_finite(target) if isinstance(target, Tensor) else target.is_finite()


def is_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite.

    A sum is never finite where an element is not, and costs less than the copy; each element is looked at only where
    the sum is not, since it may overflow.
    """
    return math.isfinite(tensor.sum().item()) or bool(torch.isfinite(tensor).all())
