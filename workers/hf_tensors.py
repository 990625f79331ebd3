"""The tensors that a checkpoint must hold: names, shapes, and the decoder's parts in them; free of torch."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from typing import Literal

from moorage.workers.errors import InvalidModel
from moorage.workers.gguf.names import GGUF_LAYOUTS
from moorage.workers.gpu.model.families import FAMILIES
from moorage.workers.gpu.model.family import (
    AllExperts,
    EachExpert,
    EachHead,
    Held,
    Mxfp4Experts,
    Packed,
    PackedByKvHead,
    TensorNames,
    Unsuffixed,
)
from moorage.workers.gpu.model.parts import NORMS, Part, Shape, biased_parts, part_shapes
from moorage.workers.gpu.model.quantization import StoredTensor, WeightFormat, read_format
from moorage.workers.hf_fields import Fields
from moorage.workers.safetensors_header import FLOAT_BYTES
from moorage.workers.spec import LayerSpec, ModelSpec

Kind = Literal["weight", "bias"]
MXFP4_GROUP = 32
"""Codes that share a scale."""
WIDE_PARTS = NORMS | {Part.Q_NORM, Part.K_NORM}
"""Norms, whose weights are float32 in every decoder."""


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
    """The layer of the parts; None for those outside the layers."""
    dtypes: tuple[str, ...] = tuple(FLOAT_BYTES)
    """Types that it may have, as safetensors names them."""
    expert: int | None = None
    """The one expert, or the one head, whose rows it holds."""
    is_less_one: bool = False
    """Whether one is to be added to its elements."""
    is_interleaved: bool = False
    """Whether rows of queries and keys that rotate together stand side by side."""
    stacked: AllExperts | Mxfp4Experts | None = None
    """How it holds the rows of all experts."""
    stored: Mapping[str, StoredTensor] | None = None
    """The tensors of a quantised weight, by their names; None where it is one tensor of floats."""

    def in_files(self) -> Mapping[str, StoredTensor]:
        """The tensors that stand for it in the files, by name."""
        return self.stored or {self.name: StoredTensor(self.shape, self.dtypes)}


def checkpoint_tensors(spec: ModelSpec, names: Collection[str] = ()) -> list[CheckpointTensor]:
    """Every tensor that a checkpoint of `spec` must hold.

    A family may name them in several ways, and GGUF files in others: the one that shares most names with `names`,
    those of the files, counts; without any the family's first.
    """
    layouts = (*FAMILIES[spec.family].layouts, *GGUF_LAYOUTS) if names else FAMILIES[spec.family].layouts[:1]
    ways = [list(_all_tensors(spec, tensors)) for tensors in layouts]
    found = max(ways, key=lambda way: sum(tensor.name in names for tensor in way))
    format = weight_format_of(spec)
    return found if format is None else [_as_stored(each, format, names) for each in found]


def weight_format_of(spec: ModelSpec) -> WeightFormat | None:
    """How the checkpoint stores quantised weights; None for plain floats."""
    return None if spec.quantization_config is None else _read_format(spec.quantization_config)


@cache
def _read_format(quantization_config: str) -> WeightFormat | None:
    return read_format(Fields({"quantization_config": json.loads(quantization_config)}, "config.json"))


def _as_stored(tensor: CheckpointTensor, weights: WeightFormat, names: Collection[str]) -> CheckpointTensor:
    """The tensor with what stands for it where the files hold it quantised. Raises InvalidModel."""
    if tensor.kind != "weight" or len(tensor.shape) != 2:
        return tensor
    module = tensor.name.removesuffix("weight")
    if not any(f"{module}{suffix}" in names for suffix in weights.marks):
        return tensor
    try:
        stored = weights.tensors((tensor.shape[0], tensor.shape[1]))
    except ValueError as error:
        raise InvalidModel(f"tensor {tensor.name} can't be quantised as config.json says: {error}") from error
    found = {f"{module}{suffix}": each for suffix, each in stored.items()}
    return replace(
        tensor, stored={name: each for name, each in found.items() if not each.optional or name in names}
    )


def tensor_shapes(spec: ModelSpec, names: Collection[str] = ()) -> dict[str, Shape]:
    """Shape by name of every tensor that a checkpoint of `spec` must hold; `names` as in `checkpoint_tensors`."""
    return {tensor.name: tensor.shape for tensor in checkpoint_tensors(spec, names)}


def weights_bytes(spec: ModelSpec, item_bytes: int) -> int:
    """Bytes of a decoder whose matrices and biases have elements of `item_bytes`."""
    return sum(
        prod(tensor.shape) * (4 if tensor.parts[0] in WIDE_PARTS else item_bytes)
        for tensor in checkpoint_tensors(spec)
    )


def present_name(name: str, family: str) -> str:
    """The name that a family's checkpoints have today for the tensor that one of them calls `name`."""
    for old, new in FAMILIES[family].tensors.older_names.items():
        name = name.replace(old, new)
    return name


def is_redundant(name: str, spec: ModelSpec) -> bool:
    """Whether a tensor that `tensor_shapes` lacks may be skipped, because the decoder derives it."""
    if spec.quantization_config is not None and name.endswith((".k_scale", ".v_scale")):
        return True  # of a quantised KV cache, which is stored in its own way here
    if name.endswith("rotary_emb.inv_freq"):
        return True
    heads = {f"{names.name_of(Part.LM_HEAD)}.weight" for names in FAMILIES[spec.family].layouts}
    return spec.tie_word_embeddings and name in heads


def _all_tensors(spec: ModelSpec, tensors: TensorNames) -> Iterator[CheckpointTensor]:
    for tensor in _named_tensors(spec, tensors):
        yield replace(
            tensor,
            is_less_one=tensors.norms_less_one and tensor.kind == "weight" and tensor.parts[0] in WIDE_PARTS,
            is_interleaved=tensors.interleaved_rotation,
        )


def _named_tensors(spec: ModelSpec, tensors: TensorNames) -> Iterator[CheckpointTensor]:
    yield from _tensors(spec, tensors.model, "", None)
    for index in range(spec.num_layers):
        yield from _tensors(spec, tensors.layer, tensors.layer_prefix.format(index), index)


def _tensors(
    spec: ModelSpec, names: Mapping[str, Held], prefix: str, layer: int | None
) -> Iterator[CheckpointTensor]:
    weights = part_shapes(spec, LayerSpec() if layer is None else spec.layer(layer))
    biases = {
        part: weights[part] if part in NORMS else weights[part][:-1]
        for part in biased_parts(spec)
        if part in weights
    }
    shapes_of: tuple[tuple[Kind, dict[Part, Shape]], ...] = (("weight", weights), ("bias", biases))
    for name, held in names.items():
        for kind, shapes in shapes_of:
            if shapes.keys() >= set(parts_in(held)):
                yield from _held(spec, f"{prefix}{name}", held, kind, shapes, layer)


def parts_in(held: Held) -> tuple[Part, ...]:
    """The parts whose rows a tensor holds."""
    match held:
        case Part():
            return (held,)
        case EachHead(part) | EachExpert(part) | Unsuffixed(part):
            return (part,)
        case Packed(parts) | PackedByKvHead(parts) | AllExperts(parts) | Mxfp4Experts(parts):
            return parts


def _held(
    spec: ModelSpec, name: str, held: Held, kind: Kind, shapes: Mapping[Part, Shape], layer: int | None
) -> Iterator[CheckpointTensor]:
    """The tensor of this name, or one for each expert or head."""
    parts = parts_in(held)
    shape = shapes[parts[0]]
    match held:
        case EachHead() | EachExpert():
            for i in range(shape[0]):
                numbered = f"{name.format(head=i, expert=i)}.{kind}"
                yield CheckpointTensor(numbered, shape[1:], kind, parts, 1, layer, expert=i)
        case Mxfp4Experts() if kind == "weight":
            number, rows, width = shape[0], sum(shapes[part][1] for part in parts), shape[2]
            blocks = (number, rows, width // MXFP4_GROUP)
            for suffix, stored in (("_blocks", (*blocks, MXFP4_GROUP // 2)), ("_scales", blocks)):
                yield CheckpointTensor(
                    f"{name}{suffix}", stored, kind, parts, 1, layer, ("U8",), stacked=held
                )
        case Mxfp4Experts():
            yield from _held(spec, name, AllExperts(parts, held.interleaved), kind, shapes, layer)
        case AllExperts():
            shape = (shape[0], sum(shapes[part][1] for part in parts), *shape[2:])
            if held.transposed and kind == "weight":
                shape = (shape[0], shape[2], shape[1])
            suffix = held.suffixes[kind == "bias"]
            yield CheckpointTensor(f"{name}{suffix}", shape, kind, parts, 1, layer, stacked=held)
        case Unsuffixed():
            yield CheckpointTensor(name, shape, kind, parts, 1, layer)
        case _:
            groups = spec.num_kv_heads if isinstance(held, PackedByKvHead) else 1
            rows = sum(shapes[part][0] for part in parts)
            yield CheckpointTensor(f"{name}.{kind}", (rows, *shape[1:]), kind, parts, groups, layer)
