"""Which tensor of a checkpoint fills which part of the decoder, per family."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from moorage.workers.gpu.model.parameters import DecoderWeights, LayerWeights
from moorage.workers.hf_tensors import TensorNames, tensor_names
from moorage.workers.spec import ModelSpec

Split = Callable[[Tensor], tuple[Tensor, ...]]


@dataclass(frozen=True, slots=True)
class Slot:
    """A tensor that the checkpoint must hold, and the views of decoder weights that it fills."""

    shape: tuple[int, ...]
    targets: tuple[Tensor, ...]
    split: Split

    def fill(self, tensor: Tensor) -> None:
        """Copy a tensor of `shape` into the decoder, converting type and device."""
        for target, part in zip(self.targets, self.split(tensor), strict=True):
            target.copy_(part)

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
    """Every tensor that a checkpoint of `spec` must hold, by name."""
    names = tensor_names(spec.family)
    found = {f"{names.embed}.weight": _whole(weights.embed), f"{names.norm}.weight": _whole(weights.norm)}
    if not spec.tie_word_embeddings:
        found[f"{names.lm_head}.weight"] = _whole(weights.lm_head)
    for index, layer in enumerate(weights.layers):
        found.update(
            (f"model.layers.{index}.{name}", slot) for name, slot in _layer_slots(spec, names, layer)
        )
    return found


def _layer_slots(spec: ModelSpec, names: TensorNames, layer: LayerWeights) -> Iterator[tuple[str, Slot]]:
    yield f"{names.input_norm}.weight", _whole(layer.input_norm)
    yield f"{names.post_norm}.weight", _whole(layer.post_norm)
    if layer.q_norm is not None and layer.k_norm is not None:
        yield f"{names.q_norm}.weight", _whole(layer.q_norm)
        yield f"{names.k_norm}.weight", _whole(layer.k_norm)
    projections = (
        ("weight", layer.qkv, layer.output, layer.gate_up, layer.down),
        ("bias", layer.qkv_bias, layer.output_bias, layer.gate_up_bias, layer.down_bias),
    )
    for kind, qkv, output, gate_up, down in projections:
        if qkv is not None:
            yield from ((f"{name}.{kind}", slot) for name, slot in _qkv_slots(spec, names, qkv))
        if output is not None:
            yield f"{names.output}.{kind}", _whole(output)
        if gate_up is not None:
            gate, up = gate_up.chunk(2)
            yield f"{names.gate}.{kind}", _whole(gate)
            yield f"{names.up}.{kind}", _whole(up)
        if down is not None:
            yield f"{names.down}.{kind}", _whole(down)


def _qkv_slots(spec: ModelSpec, names: TensorNames, fused: Tensor) -> Iterator[tuple[str, Slot]]:
    num_kv_rows = spec.num_kv_heads * spec.head_dim
    parts = torch.split(fused, [spec.num_heads * spec.head_dim, num_kv_rows, num_kv_rows])
    if len(names.qkv) == 1:
        yield names.qkv[0], Slot(tuple(fused.shape), parts, _unpacker(spec))
    else:
        yield from ((name, _whole(part)) for name, part in zip(names.qkv, parts, strict=True))


def _unpacker(spec: ModelSpec) -> Split:
    """InternLM2's wqkv holds, per KV head, its group's queries, then its key, then its value."""

    def unpack(packed: Tensor) -> tuple[Tensor, ...]:
        heads = packed.view(spec.num_kv_heads, spec.group_size + 2, spec.head_dim, *packed.shape[1:])
        query, key, value = torch.split(heads, [spec.group_size, 1, 1], dim=1)
        return query.flatten(0, 2), key.flatten(0, 2), value.flatten(0, 2)

    return unpack


def _whole(target: Tensor) -> Slot:
    return Slot(tuple(target.shape), (target,), lambda tensor: (tensor,))
