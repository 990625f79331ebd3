"""The tensors that a checkpoint must hold: names, shapes, and the decoder's parts in them; free of torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from moorage.workers.gpu.model.families import FAMILIES
from moorage.workers.gpu.model.family import PackedByKvHead
from moorage.workers.gpu.model.parts import Part, Shape, biased_parts, part_shapes
from moorage.workers.spec import ModelSpec

Kind = Literal["weight", "bias"]


@dataclass(frozen=True, slots=True)
class CheckpointTensor:
    """One tensor of a checkpoint."""

    name: str
    shape: Shape
    kind: Kind
    parts: tuple[Part, ...]
    """The parts whose rows it holds."""
    groups: int
    """How often rows of all its parts follow one another; 1 where each part is in one piece."""
    layer: int | None
    """Of the parts; None for those outside the layers."""


def checkpoint_tensors(spec: ModelSpec) -> Iterator[CheckpointTensor]:
    """Every tensor that a checkpoint of `spec` must hold."""
    names = FAMILIES[spec.family].tensors
    yield from _tensors(spec, names.model, "", None)
    for index in range(spec.num_layers):
        yield from _tensors(spec, names.layer, f"model.layers.{index}.", index)


def tensor_shapes(spec: ModelSpec) -> dict[str, Shape]:
    """Shape by name of every tensor that a checkpoint of `spec` must hold."""
    return {tensor.name: tensor.shape for tensor in checkpoint_tensors(spec)}


def present_name(name: str, family: str) -> str:
    """The name that a family's checkpoints have today for the tensor that one of them calls `name`."""
    for old, new in FAMILIES[family].tensors.older_names.items():
        name = name.replace(old, new)
    return name


def is_redundant(name: str, spec: ModelSpec) -> bool:
    """Whether a tensor that `tensor_shapes` lacks may be skipped, because the decoder derives it."""
    head = FAMILIES[spec.family].tensors.name_of(Part.LM_HEAD)
    return name.endswith("rotary_emb.inv_freq") or (spec.tie_word_embeddings and name == f"{head}.weight")


def _tensors(
    spec: ModelSpec, names: Mapping[str, Part | PackedByKvHead], prefix: str, layer: int | None
) -> Iterator[CheckpointTensor]:
    shapes, biased = part_shapes(spec), biased_parts(spec)
    for name, held in names.items():
        if isinstance(held, PackedByKvHead):
            parts, groups = held.parts, spec.num_kv_heads
        else:
            parts, groups = (held,), 1
        if not shapes.keys() >= set(parts):
            continue
        rows = sum(shapes[part][0] for part in parts)
        weight = (rows, *shapes[parts[0]][1:])
        yield CheckpointTensor(f"{prefix}{name}.weight", weight, "weight", parts, groups, layer)
        if biased >= set(parts):
            yield CheckpointTensor(f"{prefix}{name}.bias", (rows,), "bias", parts, groups, layer)
