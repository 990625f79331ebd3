"""The tensors of a GGUF model that a decoder needs, checked against its configuration; free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from moorage.workers.errors import InvalidModel
from moorage.workers.gguf.config import architecture_of
from moorage.workers.gguf.model import GgufModel
from moorage.workers.gguf.names import DERIVED, LM_HEAD
from moorage.workers.gguf.types import BY_NAME, READ_TYPES
from moorage.workers.gpu.model.parts import Part
from moorage.workers.hf_tensors import CheckpointTensor, checkpoint_tensors
from moorage.workers.safetensors_header import TensorHeader
from moorage.workers.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class GgufTensor(TensorHeader):
    """One tensor, in the shape that the decoder has for it."""

    pair_heads: int = 0
    """Heads whose rows are ordered for the rotation of neighbouring channels; 0 where no rows are."""


def check_tensors(model: GgufModel, spec: ModelSpec) -> dict[str, TensorHeader]:
    """The tensors that `spec` needs, by name. Raises InvalidModel, in one line, for one that can't be used."""
    expected = checkpoint_tensors(spec, model.tensors)
    pairs = architecture_of(model).pairs
    found: dict[str, TensorHeader] = {
        tensor.name: _checked(model, tensor, _pair_heads(tensor, spec) if pairs else 0) for tensor in expected
    }
    for name, header in model.tensors.items():
        if name not in found and name not in DERIVED and not (spec.tie_word_embeddings and name == LM_HEAD):
            raise InvalidModel(
                f"{header.file}: tensor {name} has no place in a {spec.family} model; use another conversion of it"
            )
    return found


def _pair_heads(tensor: CheckpointTensor, spec: ModelSpec) -> int:
    return {Part.QUERY: spec.num_heads, Part.KEY: spec.num_kv_heads}.get(tensor.parts[0], 0)


def _checked(model: GgufModel, expected: CheckpointTensor, pair_heads: int) -> GgufTensor:
    header = model.tensors.get(expected.name)
    if header is None:
        raise InvalidModel(f"{model.file}: tensor {expected.name} is missing; download the file again")
    if header.shape != expected.shape and header.shape != expected.shape[-1:] * (
        prod(expected.shape[:-1]) == 1
    ):
        raise InvalidModel(
            f"{header.file}: tensor {header.name} has shape {list(header.shape)} where the keys make it "
            f"{list(expected.shape)}; download the file again"
        )
    if not BY_NAME[header.dtype].is_read:
        raise InvalidModel(
            f"{header.file}: tensor {header.name} has type {header.dtype}, which is not supported; use a file with "
            f"{', '.join(READ_TYPES)}"
        )
    return GgufTensor(
        header.name, header.file, header.dtype, expected.shape, header.begin, header.num_bytes, pair_heads
    )
