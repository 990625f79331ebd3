"""Safetensors files of a model directory: which there are, what they hold, and their tensors one by one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from moorage.workers.errors import InvalidModel
from moorage.workers.hf_fields import Fields

INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
MAPPED_BYTES = 2**30
"""Of a file that is read through one mapping: what it has read counts as this process's memory until it is closed."""
_FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """Where one tensor lies, and its shape."""

    name: str
    file: Path
    shape: tuple[int, ...]
    num_bytes: int


def read_headers(directory: Path) -> dict[str, TensorHeader]:
    """Headers of all tensors by name; no weights are read. Raises InvalidModel for a bad or missing file."""
    headers: dict[str, TensorHeader] = {}
    for file in _files(directory):
        headers.update((header.name, header) for header in _headers_of(file))
    return headers


def read_tensors(headers: Iterable[TensorHeader]) -> Iterator[tuple[TensorHeader, Tensor]]:
    """The tensors of `headers` on the CPU, file by file, one at a time; drop each before the next.

    They are views of a mapped file, of which never more than about MAPPED_BYTES stay. Raises InvalidModel.
    """
    by_file: dict[Path, list[TensorHeader]] = {}
    for header in headers:
        by_file.setdefault(header.file, []).append(header)
    for file, in_file in by_file.items():
        for wanted in _mapped_together(in_file):
            with _open(file) as tensors:
                for header in wanted:
                    yield header, tensors.get_tensor(header.name)


def _mapped_together(headers: list[TensorHeader]) -> Iterator[list[TensorHeader]]:
    batch: list[TensorHeader] = []
    for header in headers:
        if batch and sum(each.num_bytes for each in batch) + header.num_bytes > MAPPED_BYTES:
            yield batch
            batch = []
        batch.append(header)
    yield batch


def _files(directory: Path) -> list[Path]:
    index = directory / INDEX
    if index.is_file():
        return _files_of_index(index)
    files = sorted(directory.glob("model*.safetensors"))
    if files:
        return files
    pickles = sorted(path.name for pattern in PICKLES for path in directory.glob(pattern))
    if pickles:
        raise InvalidModel(
            f"{directory}: holds only pickled weights ({pickles[0]}), which can run code and are "
            "never loaded; convert the model to safetensors"
        )
    raise InvalidModel(f"{directory}: no model*.safetensors file; download the weights, or check model.path")


def _files_of_index(index: Path) -> list[Path]:
    weight_map = Fields.read(index).child("weight_map")
    names = [] if weight_map is None else list(weight_map.values.values())
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise InvalidModel(f"{index}: weight_map must map tensors to files of this folder; download it again")
    files = [index.parent / name for name in sorted({str(name) for name in names})]
    for file in files:
        if not file.is_file():
            raise InvalidModel(f"{file}: missing, though {index.name} lists it; download it again")
    return files


def _headers_of(file: Path) -> Iterator[TensorHeader]:
    with _open(file) as tensors:
        for name in tensors.keys():  # noqa: SIM118 - a safetensors handle is no mapping
            part = tensors.get_slice(name)
            dtype, shape = part.get_dtype(), tuple(part.get_shape())
            if dtype not in _FLOATS:
                raise InvalidModel(
                    f"{file}: tensor {name} has type {dtype}; use the checkpoint with plain float weights"
                )
            num_bytes = _FLOATS[dtype]
            for size in shape:
                num_bytes *= size
            yield TensorHeader(name, file, shape, num_bytes)


def _open(file: Path) -> safe_open:
    try:
        return safe_open(file, framework="pt", device="cpu")
    except SafetensorError as error:
        reason = str(error).splitlines()[0]
        raise InvalidModel(f"{file}: not a complete safetensors file ({reason}); download it again") from None
    except OSError as error:
        raise InvalidModel(f"{file}: can't be read ({error.strerror or error}); check the file") from None
