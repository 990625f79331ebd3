"""Which tensor of a checkpoint fills which parts of a decoder's weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from moorage.workers.gpu.model.family import AllExperts, Mxfp4Experts
from moorage.workers.gpu.model.matrix_rows import MatrixRows, Target, is_filled_finite
from moorage.workers.gpu.model.mxfp4 import Mxfp4Slot
from moorage.workers.gpu.model.parameters import (
    DecoderWeights,
    ExpertsWeights,
    LayerWeights,
    MlpWeights,
    Norm,
)
from moorage.workers.gpu.model.parts import DENSE, EXPERT, SHARED, MlpParts, Part
from moorage.workers.gpu.model.quantization.slot import slots_of_weight
from moorage.workers.gpu.model.quantized import Matrix, StackedMatrix
from moorage.workers.hf_tensors import CheckpointTensor, Kind, weight_format_of
from moorage.workers.spec import ExpertsSpec, ModelSpec, QkNorm

Views = dict[tuple[Part, Kind], Target]


class Fillable(Protocol):
    """The views of a decoder's weights that one tensor of the checkpoint fills."""

    def fill(self, tensor: Tensor) -> None:
        """Copies a tensor of the checkpoint into the decoder, and converts type and device."""

    def is_finite(self) -> bool:
        """Whether no element that was filled is NaN or infinite."""


@dataclass(frozen=True, slots=True)
class Slot:
    """Views whose rows follow one another in the tensor."""

    targets: tuple[Target, ...]
    groups: int
    """See CheckpointTensor."""
    orders: tuple[Tensor | None, ...] = ()
    """For each target, int64 [rows]: the row of the tensor that stands at each place; None leaves the order."""
    added: float = 0.0
    """What is added to every element."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor."""
        return (sum(target.shape[0] for target in self.targets), *self.targets[0].shape[1:])

    def fill(self, tensor: Tensor) -> None:
        """See Fillable; the tensor is of `shape`."""
        grouped = tensor.view(self.groups, -1, *tensor.shape[1:])
        rows = [target.shape[0] // self.groups for target in self.targets]
        orders = self.orders or (None,) * len(rows)
        for target, part, order in zip(self.targets, torch.split(grouped, rows, dim=1), orders, strict=True):
            in_order = part if order is None else part.reshape(len(order), -1)[order]
            target.copy_(in_order.reshape(target.shape))
            if self.added and isinstance(target, Tensor):
                target += self.added

    def is_finite(self) -> bool:
        """See Fillable."""
        return all(is_filled_finite(target) for target in self.targets)


@dataclass(frozen=True, slots=True)
class ExpertsSlot:
    """Views of the parts of all experts, [experts, out, in] or [experts, out]."""

    targets: tuple[Target, ...]
    held: AllExperts

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor."""
        number, _, *inner = self.targets[0].shape
        rows = sum(target.shape[1] for target in self.targets)
        return (number, *inner, rows) if self.held.transposed else (number, rows, *inner)

    def fill(self, tensor: Tensor) -> None:
        """See Fillable."""
        rows = tensor.mT if self.held.transposed and tensor.dim() == 3 else tensor
        if self.held.interleaved:
            parts = tuple(rows[:, i :: len(self.targets)] for i in range(len(self.targets)))
        else:
            parts = torch.split(rows, [target.shape[1] for target in self.targets], dim=1)
        for target, part in zip(self.targets, parts, strict=True):
            target.copy_(part)

    def is_finite(self) -> bool:
        """See Fillable."""
        return all(is_filled_finite(target) for target in self.targets)


def slots(
    spec: ModelSpec, weights: DecoderWeights, tensors: Iterable[CheckpointTensor]
) -> dict[str, Fillable]:
    """Where each of the tensors of a checkpoint of `spec` goes, by its name."""
    outside: Views = {
        **_stacked({Part.EMBED: spec.vocab_size}, weights.embed, None),
        **_norm(Part.FINAL_NORM, weights.norm),
        **_stacked({Part.LM_HEAD: spec.vocab_size}, weights.lm_head, None),
    }
    layers = [_views(spec, layer) for layer in weights.layers]
    found: dict[str, Fillable] = {}
    for tensor in tensors:
        if tensor.stored is not None:
            found |= _quantized(spec, tensor, outside if tensor.layer is None else layers[tensor.layer])
            continue
        slot = _slot(spec, tensor, outside if tensor.layer is None else layers[tensor.layer])
        # The two tensors of MXFP4 weights share one.
        pair = found.get(f"{tensor.name.removesuffix('_scales')}_blocks")
        found[tensor.name] = slot if pair is None else pair
    return found


def _quantized(spec: ModelSpec, tensor: CheckpointTensor, views: Views) -> Mapping[str, Fillable]:
    """The slots of the tensors that stand for a quantised weight."""
    targets = tuple(views[part, "weight"] for part in tensor.parts)
    if tensor.expert is not None:
        targets = tuple(target[tensor.expert] for target in targets)
    counts = [target.shape[0] // tensor.groups for target in targets]
    places = torch.arange(tensor.shape[0]).view(tensor.groups, -1)
    rows = [part.flatten() for part in torch.split(places, counts, dim=1)]
    orders = [_order(spec, part) if tensor.is_interleaved else None for part in tensor.parts]
    rows = [part if order is None else part[order] for part, order in zip(rows, orders, strict=True)]
    format = weight_format_of(spec)
    assert format is not None
    return slots_of_weight(format, tensor, targets, tuple(rows))


def _slot(spec: ModelSpec, tensor: CheckpointTensor, views: Views) -> Fillable:
    targets = tuple(views[part, tensor.kind] for part in tensor.parts)
    if isinstance(tensor.stacked, Mxfp4Experts):
        return Mxfp4Slot(targets, tensor.stacked.interleaved)
    if tensor.stacked is not None:
        return ExpertsSlot(targets, tensor.stacked)
    if tensor.expert is not None:
        targets = tuple(target[tensor.expert] for target in targets)
    orders = tuple(_order(spec, part) for part in tensor.parts) if tensor.is_interleaved else ()
    return Slot(targets, tensor.groups, orders, 1.0 if tensor.is_less_one else 0.0)


def _order(spec: ModelSpec, part: Part) -> Tensor | None:
    """Where a decoder has the rows of a part whose rotated channels alternate; None where none of them rotate."""
    if part not in (Part.QUERY, Part.KEY, Part.Q_NORM, Part.K_NORM):
        return None
    channels, rotated = torch.arange(spec.head_dim), spec.rope.rotary_dim
    channels[:rotated] = torch.cat((channels[:rotated:2], channels[1:rotated:2]))
    if spec.qk_norm is QkNorm.HEAD and part in (Part.Q_NORM, Part.K_NORM):
        return channels
    heads = spec.num_heads if part in (Part.QUERY, Part.Q_NORM) else spec.num_kv_heads
    return (torch.arange(heads)[:, None] * spec.head_dim + channels).flatten()


def _views(spec: ModelSpec, layer: LayerWeights) -> Views:
    """Each part of a layer as a view of the matrix in which it lies."""
    query, key_value = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    views: Views = {
        **_norm(Part.INPUT_NORM, layer.input_norm),
        **_norm(Part.ATTENTION_OUT_NORM, layer.attention_out_norm),
        **_norm(Part.POST_NORM, layer.post_norm),
        **_norm(Part.MLP_OUT_NORM, layer.mlp_out_norm),
        **_whole(Part.Q_NORM, layer.q_norm),
        **_whole(Part.K_NORM, layer.k_norm),
        **_whole(Part.SINKS, layer.sinks),
        **_stacked({Part.OUTPUT: spec.hidden_size}, layer.output, layer.output_bias),
    }
    rows = {Part.QUERY: query, Part.KEY: key_value, Part.VALUE: key_value}
    views |= _stacked(rows, layer.qkv, layer.qkv_bias)
    if isinstance(layer.feed_forward, MlpWeights):
        return views | _mlp_views(layer.feed_forward, DENSE, spec.hidden_size, spec.intermediate_size)
    assert spec.experts is not None
    return views | _experts_views(spec.experts, spec.hidden_size, layer.feed_forward)


def _norm(part: Part, norm: Norm | None) -> Views:
    return {} if norm is None else {**_whole(part, norm.weight), **_whole(part, norm.bias, "bias")}


def _experts_views(spec: ExpertsSpec, hidden: int, weights: ExpertsWeights) -> Views:
    views = {
        **_stacked({Part.ROUTER: spec.num_experts}, weights.router, weights.router_bias),
        **_whole(Part.SHARED_WEIGHT, weights.shared_weight),
        **_mlp_views(weights.experts, EXPERT, hidden, spec.intermediate_size),
    }
    if weights.shared is not None:
        views |= _mlp_views(weights.shared, SHARED, hidden, spec.shared_intermediate_size)
    return views


def _mlp_views(weights: MlpWeights, parts: MlpParts, hidden: int, intermediate: int) -> Views:
    number = weights.num_experts
    gate_and_up = {parts.gate: intermediate, parts.up: intermediate}
    return {
        **_stacked(gate_and_up, weights.gate_up, weights.gate_up_bias, number),
        **_stacked({parts.down: hidden}, weights.down, weights.down_bias, number),
    }


def _whole(part: Part, tensor: Tensor | None, kind: Kind = "weight") -> Views:
    """A part that is a tensor of its own; none where the layer lacks it."""
    return {} if tensor is None else {(part, kind): tensor}


def _stacked(rows: Mapping[Part, int], weight: Matrix, bias: Tensor | None, number: int = 0) -> Views:
    """The parts that follow one another in one matrix, by their numbers of rows; those of `number` experts."""
    axis, sizes = int(number > 0), list(rows.values())
    views: Views = {
        (part, "weight"): view for part, view in zip(rows, _pieces(weight, sizes, number), strict=True)
    }
    if bias is not None:
        views |= {
            (part, "bias"): view for part, view in zip(rows, torch.split(bias, sizes, dim=axis), strict=True)
        }
    return views


def _pieces(weight: Matrix, sizes: Sequence[int], number: int) -> Sequence[Target]:
    if isinstance(weight, Tensor):
        return torch.split(weight, list(sizes), dim=int(number > 0))
    if isinstance(weight, StackedMatrix):
        return [_pieces(part, [size], number)[0] for part, size in zip(weight.parts, sizes, strict=True)]
    starts = [0, *accumulate(sizes)]
    return [
        MatrixRows(
            weight,
            tuple(expert * starts[-1] + start for expert in range(max(1, number))),
            size,
            is_stack=number > 0,
        )
        for start, size in zip(starts, sizes, strict=False)
    ]
