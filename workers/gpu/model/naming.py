"""Which tensor of a checkpoint fills which parts of a decoder's weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from moorage.workers.gpu.model.parameters import DecoderWeights, LayerWeights
from moorage.workers.gpu.model.parts import Part, part_shapes
from moorage.workers.hf_tensors import Kind, checkpoint_tensors
from moorage.workers.spec import ModelSpec

Views = dict[tuple[Part, Kind], Tensor]


@dataclass(frozen=True, slots=True)
class Slot:
    """The views of a decoder's weights that one tensor of the checkpoint fills."""

    targets: tuple[Tensor, ...]
    groups: int
    """See CheckpointTensor."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""
        return (sum(target.shape[0] for target in self.targets), *self.targets[0].shape[1:])

    def fill(self, tensor: Tensor) -> None:
        """Copies a tensor of `shape` into the decoder, and converts type and device."""
        grouped = tensor.view(self.groups, -1, *tensor.shape[1:])
        rows = [target.shape[0] // self.groups for target in self.targets]
        for target, part in zip(self.targets, torch.split(grouped, rows, dim=1), strict=True):
            target.view(part.shape).copy_(part)

    def is_finite(self) -> bool:
        """Whether no element that was filled is NaN or infinite."""
        return all(is_finite(target) for target in self.targets)


def is_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite.

    A sum is never finite where an element is not, and costs less than the copy; each element is looked at only where
    the sum is not, since it may overflow.
    """
    return math.isfinite(tensor.sum().item()) or bool(torch.isfinite(tensor).all())


def slots(spec: ModelSpec, weights: DecoderWeights) -> dict[str, Slot]:
    """Where each tensor of a checkpoint of `spec` goes, by its name."""
    outside: Views = {
        (Part.EMBED, "weight"): weights.embed,
        (Part.FINAL_NORM, "weight"): weights.norm,
        (Part.LM_HEAD, "weight"): weights.lm_head,
    }
    layers = [_views(spec, layer) for layer in weights.layers]
    found = {}
    for tensor in checkpoint_tensors(spec):
        views = outside if tensor.layer is None else layers[tensor.layer]
        found[tensor.name] = Slot(tuple(views[part, tensor.kind] for part in tensor.parts), tensor.groups)
    return found


def _views(spec: ModelSpec, layer: LayerWeights) -> Views:
    """Each part of a layer as a view of the matrix in which it lies."""
    views: Views = {
        (Part.INPUT_NORM, "weight"): layer.input_norm,
        (Part.POST_NORM, "weight"): layer.post_norm,
    }
    if layer.q_norm is not None and layer.k_norm is not None:
        views |= {(Part.Q_NORM, "weight"): layer.q_norm, (Part.K_NORM, "weight"): layer.k_norm}
    matrices: dict[tuple[Part, ...], tuple[Tensor, Tensor | None]] = {
        (Part.QUERY, Part.KEY, Part.VALUE): (layer.qkv, layer.qkv_bias),
        (Part.OUTPUT,): (layer.output, layer.output_bias),
        (Part.GATE, Part.UP): (layer.gate_up, layer.gate_up_bias),
        (Part.DOWN,): (layer.down, layer.down_bias),
    }
    shapes = part_shapes(spec)
    for parts, (weight, bias) in matrices.items():
        rows = [shapes[part][0] for part in parts]
        views |= {(part, "weight"): view for part, view in zip(parts, torch.split(weight, rows), strict=True)}
        if bias is not None:
            views |= {(part, "bias"): view for part, view in zip(parts, torch.split(bias, rows), strict=True)}
    return views
