"""Reads the tensors of safetensors and GGUF files one by one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from moorage.workers.errors import InvalidModel
from moorage.workers.gguf.tensors import MatrixReader, read_tensor
from moorage.workers.gguf.weights import GgufTensor
from moorage.workers.safetensors_header import TensorHeader

MAPPED_BYTES = 2**30
"""Most bytes that are read through one mapping of a file; they count as this process's memory until it is closed."""


def read_tensors(
    headers: Iterable[TensorHeader], dtype: torch.dtype, kept: Collection[str] = ()
) -> Iterator[tuple[TensorHeader, Tensor | MatrixReader]]:
    """The tensors of `headers` on the CPU, file by file. The caller drops each before it takes the next.

    They are views of a mapped file, of which no more than about MAPPED_BYTES stay in memory, or floats made from
    blocks of a GGUF file, in `dtype` where that holds all of them. Those of a GGUF file that `kept` names are given
    as what reads them as matrices. Raises InvalidModel.
    """
    by_file: dict[Path, list[TensorHeader]] = {}
    for header in headers:
        if isinstance(header, GgufTensor):
            yield header, MatrixReader(header) if header.name in kept else read_tensor(header, dtype)
            continue
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


def _open(file: Path) -> safe_open:
    try:
        return safe_open(file, framework="pt", device="cpu")
    except SafetensorError as error:
        reason = str(error).splitlines()[0]
        raise InvalidModel(f"{file}: not a complete safetensors file ({reason}); download it again") from None
    except OSError as error:
        raise InvalidModel(f"{file}: can't be read ({error.strerror or error}); check the file") from None
