"""Fills the parts of a decoder from quantised weights, each of which several tensors of a checkpoint stand for."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from moorage.kernels.quantized_linear import PANEL, QuantizedMatrix, pack, unpack
from moorage.workers.errors import InvalidModel
from moorage.workers.gpu.model.matrix_rows import MatrixRows, Target, is_filled_finite
from moorage.workers.gpu.model.quantization.base import WeightFormat
from moorage.workers.gpu.model.quantized import ReorderedMatrix, dequantize
from moorage.workers.hf_tensors import CheckpointTensor

OneMatrix = QuantizedMatrix | ReorderedMatrix


@dataclass(slots=True)
class QuantizedWeight:
    """One weight [out, in], which fills its targets once all of its tensors have come."""

    format: WeightFormat
    tensor: CheckpointTensor
    names: frozenset[str]
    """What its tensors have after the module's name."""
    targets: tuple[Target, ...]
    rows: tuple[Tensor, ...]
    """For each target, int64: the row of the weight that stands at each place."""
    given: dict[str, Tensor] = field(default_factory=dict)
    """The tensors that have come, until all are there."""

    def add(self, name: str, tensor: Tensor) -> None:
        """Takes one of the tensors. Raises InvalidModel where they do not fit one another."""
        self.given[name] = tensor.clone()  # what was read is a view of a file that is soon closed
        if self.given.keys() != self.names:
            return
        try:
            matrix = self.format.matrix(self.given, (self.tensor.shape[0], self.tensor.shape[1]))
        except ValueError as error:
            raise InvalidModel(f"tensor {self.tensor.name}: {error}; download the weights again") from error
        self.given.clear()
        assert isinstance(matrix, OneMatrix)
        for target, rows in zip(self.targets, self.rows, strict=True):
            part = rows_of(matrix, rows)
            if isinstance(target, MatrixRows):
                target.copy_matrix(part)
            else:
                target.copy_(values_of(part))


@dataclass(frozen=True, slots=True)
class QuantizedSlot:
    """One of the tensors of a quantised weight."""

    weight: QuantizedWeight
    name: str
    shape: tuple[int, ...]

    def fill(self, tensor: Tensor) -> None:
        """See Fillable."""
        self.weight.add(self.name, tensor)

    def is_finite(self) -> bool:
        """Whether what was filled is finite; True before all tensors of the weight have come."""
        return bool(self.weight.given) or all(is_filled_finite(target) for target in self.weight.targets)


def rows_of(matrix: OneMatrix, rows: Tensor) -> OneMatrix:
    """The rows int64 [n] of a matrix; a view where they are whole panels."""
    if isinstance(matrix, ReorderedMatrix):
        inner = rows_of(matrix.matrix, rows)
        assert isinstance(inner, QuantizedMatrix)
        return replace(matrix, matrix=inner)
    begin, end = int(rows[0]), int(rows[-1]) + 1
    whole_panels = begin % PANEL == 0 and (end % PANEL == 0 or end == matrix.num_rows)
    if whole_panels and torch.equal(rows, torch.arange(begin, end)):
        return matrix.rows(begin, end)
    codes, scales, minima = unpack(matrix)
    # torch does not index floats of eight bits.
    picked = codes.contiguous().view(torch.uint8)[rows].view(codes.dtype)
    return pack(
        picked,
        scales[rows],
        None if minima is None else minima[rows],
        bits=matrix.kind.bits,
        table=matrix.table,
        scale_dtype=scales.dtype,
    )


def values_of(matrix: OneMatrix) -> Tensor:
    """The weights float32 [out, in], in the order of the input channels."""
    if isinstance(matrix, QuantizedMatrix):
        return dequantize(matrix)
    ordered = dequantize(matrix.matrix)
    return torch.empty_like(ordered).index_copy_(1, matrix.order, ordered)


def slots_of_weight(
    weights: WeightFormat, tensor: CheckpointTensor, targets: tuple[Target, ...], rows: tuple[Tensor, ...]
) -> dict[str, QuantizedSlot]:
    """A slot for each of the tensors that stand for a quantised weight, by its name."""
    stored = tensor.in_files()
    ends = {name: name.rpartition(".")[2] for name in stored}
    weight = QuantizedWeight(weights, tensor, frozenset(ends.values()), targets, rows)
    return {name: QuantizedSlot(weight, end, stored[name].shape) for name, end in ends.items()}
