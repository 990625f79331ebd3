"""The weights of a decoder, as tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from moorage.kernels.quantized_linear import QuantizedMatrix
from moorage.workers.gpu.model.quantized import Matrix, ReorderedMatrix, StackedMatrix, moved


@dataclass(frozen=True, slots=True)
class Norm:
    """The weight of a norm of hidden states, and its bias; float32 whatever the decoder's type."""

    weight: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True, slots=True)
class MlpWeights:
    """A feed-forward part, or that of every expert, with one more axis in front. Gate and up are one matrix."""

    gate_up: Matrix
    down: Matrix
    gate_up_bias: Tensor | None = None
    down_bias: Tensor | None = None
    num_experts: int = 0
    """Experts of which these are all; 0 for one part."""

    @property
    def device(self) -> torch.device:
        """The device of all tensors."""
        return next(tensors_of(self.gate_up)).device

    def to(self, device: torch.device) -> MlpWeights:
        """Copies on `device`, which may be under way."""
        gate_up_bias, down_bias = self.gate_up_bias, self.down_bias
        return MlpWeights(
            moved(self.gate_up, device),
            moved(self.down, device),
            None if gate_up_bias is None else gate_up_bias.to(device, non_blocking=True),
            None if down_bias is None else down_bias.to(device, non_blocking=True),
            self.num_experts,
        )

    def of(self, expert: int) -> MlpWeights:
        """Views of one expert's, where these are of all."""
        gate_up_bias, down_bias = self.gate_up_bias, self.down_bias
        return MlpWeights(
            self._of_expert(self.gate_up, expert),
            self._of_expert(self.down, expert),
            None if gate_up_bias is None else gate_up_bias[expert],
            None if down_bias is None else down_bias[expert],
        )

    def _of_expert(self, weight: Matrix, expert: int) -> Matrix:
        match weight:
            case Tensor():
                return weight[expert]
            case QuantizedMatrix():
                rows = weight.num_rows // self.num_experts
                return weight.rows(expert * rows, (expert + 1) * rows)
            case ReorderedMatrix():
                rows = weight.matrix.num_rows // self.num_experts
                matrix = weight.matrix.rows(expert * rows, (expert + 1) * rows)
                return ReorderedMatrix(matrix, weight.order[expert])
            case StackedMatrix():
                parts = (self._of_expert(part, expert) for part in weight.parts)
                return StackedMatrix(tuple(part for part in parts if not isinstance(part, StackedMatrix)))


@dataclass(frozen=True, slots=True)
class ExpertsWeights:
    """A feed-forward part of experts."""

    router: Tensor
    router_bias: Tensor | None
    experts: MlpWeights
    shared: MlpWeights | None
    """Weights of the expert that every token uses."""
    shared_weight: Tensor | None
    """[1, hidden]: a logit, whose sigmoid weights the shared expert."""


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer. Matrices are [out, in]. Query, key and value are one matrix in this order."""

    input_norm: Norm | None
    """The norm before attention; it and the next three stand where the model's `Residual` has them."""
    attention_out_norm: Norm | None
    post_norm: Norm | None
    """The norm before the feed-forward part."""
    mlp_out_norm: Norm | None
    qkv: Matrix
    output: Matrix
    feed_forward: MlpWeights | ExpertsWeights
    qkv_bias: Tensor | None
    output_bias: Tensor | None
    q_norm: Tensor | None
    """The norm of queries in float32, as is that of keys next."""
    k_norm: Tensor | None
    sinks: Tensor | None
    """[query heads]: a logit that takes part in the softmax of each and has no value."""


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """The whole decoder. With tied embeddings `lm_head` is the same tensor as `embed`."""

    embed: Tensor | QuantizedMatrix
    layers: tuple[LayerWeights, ...]
    norm: Norm
    lm_head: Tensor | QuantizedMatrix
    dtype: torch.dtype
    """The type of float matrices, embeddings and hidden states."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors; a tensor that stands twice counts once."""
        return sum({id(tensor): tensor.nbytes for tensor in self.tensors()}.values())

    def tensors(self) -> Iterator[Tensor]:
        """All tensors; those of tied embeddings stand twice. The tables of quantised matrices are left out."""
        yield from (*tensors_of(self.embed), *_tensors(self.norm), *tensors_of(self.lm_head))
        for layer in self.layers:
            yield from _tensors(layer)


def tensors_of(weight: Matrix) -> Iterator[Tensor]:
    """The tensors that a matrix, or a vector, is made of."""
    match weight:
        case Tensor():
            yield weight
        case QuantizedMatrix():
            yield from weight.row_tensors()
        case ReorderedMatrix():
            yield from (*weight.matrix.row_tensors(), weight.order)
        case StackedMatrix():
            for part in weight.parts:
                yield from tensors_of(part)


def mlp_tensors(weights: MlpWeights) -> Iterator[Tensor]:
    """The tensors of a feed-forward part."""
    return _tensors(weights)


def _tensors(weights: Norm | LayerWeights | ExpertsWeights | MlpWeights) -> Iterator[Tensor]:
    for field in fields(weights):
        value = getattr(weights, field.name)
        if isinstance(value, Norm | MlpWeights | ExpertsWeights):
            yield from _tensors(value)
        elif isinstance(value, Matrix):
            yield from tensors_of(value)
