"""The tensors of a GGUF model that a decoder needs, checked against its configuration; free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod

from moorage.workers.errors import InvalidModel
from moorage.workers.gguf.config import architecture_of
from moorage.workers.gguf.model import GgufModel
from moorage.workers.gguf.names import DERIVED, LM_HEAD
from moorage.workers.gguf.types import BY_NAME, READ_TYPES
from moorage.workers.hf_tensors import CheckpointTensor, checkpoint_tensors
from moorage.workers.safetensors_header import TensorHeader
from moorage.workers.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class GgufTensor(TensorHeader):
    """One tensor, in the shape that the decoder has for it."""

    is_interleaved: bool = False
    """Whether rows of queries and keys that rotate together stand side by side."""


def decoder_tensors(spec: ModelSpec, headers: Mapping[str, TensorHeader]) -> list[CheckpointTensor]:
    """`checkpoint_tensors` of the files that hold `headers`, with the order of rows that GGUF files have."""
    found = []
    for tensor in checkpoint_tensors(spec, headers):
        header = headers.get(tensor.name)
        if isinstance(header, GgufTensor):
            tensor = replace(tensor, is_interleaved=header.is_interleaved)
        found.append(tensor)
    return found


def check_tensors(model: GgufModel, spec: ModelSpec) -> dict[str, TensorHeader]:
    """The tensors that `spec` needs, by name. Raises InvalidModel, in one line, for one that can't be used."""
    expected = checkpoint_tensors(spec, model.tensors)
    is_interleaved = architecture_of(model).pairs
    found: dict[str, TensorHeader] = {
        tensor.name: _checked(model, tensor, is_interleaved) for tensor in expected
    }
    for name, header in model.tensors.items():
        if name not in found and name not in DERIVED and not (spec.tie_word_embeddings and name == LM_HEAD):
            raise InvalidModel(
                f"{header.file}: tensor {name} has no place in a {spec.family} model; use another conversion of it"
            )
    return found


def _checked(model: GgufModel, expected: CheckpointTensor, is_interleaved: bool) -> GgufTensor:
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
        header.name, header.file, header.dtype, expected.shape, header.begin, header.num_bytes, is_interleaved
    )
