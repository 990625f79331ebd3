"""The model that one or several GGUF files hold together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moorage.workers.errors import InvalidModel
from moorage.workers.gguf.header import GgufHeader, read_headers
from moorage.workers.safetensors_header import TensorHeader

_COUNT_KEY, _TENSORS_KEY = "split.count", "split.tensors.count"


@dataclass(frozen=True, slots=True)
class GgufModel:
    """Keys of the first file, and the tensors of all."""

    file: Path
    """The first one, which messages name."""
    values: Mapping[str, Any]
    """Value by key, without long arrays."""
    lengths: Mapping[str, int]
    """Elements of the long arrays."""
    tensors: Mapping[str, TensorHeader]
    """The tensors by name."""

    @property
    def architecture(self) -> str:
        """The name of the architecture in llama.cpp."""
        return str(self.values.get("general.architecture", ""))


def read_gguf(files: Sequence[Path]) -> GgufModel:
    """Reads the headers of one model's files. Raises InvalidModel when one is damaged or of another model."""
    headers = read_headers(files)
    first = headers[0]
    tensors: dict[str, TensorHeader] = {}
    for header in headers:
        for tensor in header.tensors:
            if tensor.name in tensors:
                other = tensors[tensor.name].file.name
                raise InvalidModel(
                    f"{header.file}: tensor {tensor.name} stands in {other} too; the parts must be of one model"
                )
            tensors[tensor.name] = tensor
    _check_parts(first, len(headers), len(tensors))
    return GgufModel(first.file, first.values, first.lengths, tensors)


def _check_parts(first: GgufHeader, num_files: int, num_tensors: int) -> None:
    count = first.values.get(_COUNT_KEY, 1) or 1
    if count != num_files:
        raise InvalidModel(
            f"{first.file}: {_COUNT_KEY} is {str(count)[:20]}, but there are {num_files} files of it; give all parts "
            "the names that they were published with"
        )
    expected = first.values.get(_TENSORS_KEY, num_tensors)
    if expected != num_tensors:
        raise InvalidModel(
            f"{first.file}: {_TENSORS_KEY} is {str(expected)[:20]}, but its files hold {num_tensors} tensors; "
            "download them again"
        )
