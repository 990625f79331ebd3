"""Reads and checks the header of a safetensors file without torch.

A file is an 8-byte length, a JSON object of that length, and the tensors' bytes one after the other.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, TypeGuard

from moorage.workers.errors import InvalidModel

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100 << 20
_LFS_POINTER = b"version https://git-lfs"
FLOAT_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Bytes of one element of each type that plain weights may have."""
ELEMENT_BYTES = {**FLOAT_BYTES, "F8_E4M3": 1, "U8": 1, "I8": 1, "I16": 2, "I32": 4, "I64": 8}
"""Bytes of each type that tensors may have, those of quantised weights included."""


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """Type, shape and place of one tensor."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    """First byte in the file."""
    num_bytes: int


def read_header(file: Path) -> list[TensorHeader]:
    """The tensors of a file in the order of their bytes, which are not read.

    Raises InvalidModel when the file is not a whole safetensors file, and for a type that no weights have.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            start = stream.read(len(_LFS_POINTER))
            if start == _LFS_POINTER:
                raise _incomplete(file, "it is a pointer of Git LFS; run git lfs pull")
            length = int.from_bytes(start[:_LENGTH_BYTES], "little")
            if size < _LENGTH_BYTES or length > min(size - _LENGTH_BYTES, _MAX_HEADER_BYTES):
                raise _incomplete(file, f"its {size} bytes do not hold the header that they announce")
            stream.seek(_LENGTH_BYTES)
            values = json.loads(stream.read(length))
    except OSError as error:
        raise InvalidModel(f"{file}: can't be read ({error.strerror or error}); check the file") from None
    except (ValueError, RecursionError):
        raise _incomplete(file, "its header is not JSON") from None
    if not isinstance(values, dict):
        raise _incomplete(file, "its header is not a JSON object")
    data = _LENGTH_BYTES + length
    found = [_tensor(file, name, value, data) for name, value in values.items() if name != "__metadata__"]
    found.sort(key=lambda tensor: (tensor.begin, tensor.num_bytes))
    _check_offsets(file, found, data, size)
    return found


def _tensor(file: Path, name: str, value: Any, data: int) -> TensorHeader:
    dtype, shape, offsets = (
        (value.get(key) if isinstance(value, dict) else None) for key in ("dtype", "shape", "data_offsets")
    )
    if not (isinstance(dtype, str) and _are_counts(shape) and _are_counts(offsets) and len(offsets) == 2):
        raise _incomplete(file, f"the header of tensor {name} has no dtype, shape and data_offsets")
    if dtype not in ELEMENT_BYTES:
        raise wrong_type(file, name, dtype)
    begin, end = offsets
    num_bytes = prod(shape) * ELEMENT_BYTES[dtype]
    if end - begin != num_bytes:
        raise _incomplete(
            file,
            f"tensor {name} of shape {shape} and type {dtype} takes {num_bytes} bytes, not {end - begin}",
        )
    return TensorHeader(name, file, dtype, tuple(shape), data + begin, num_bytes)


def wrong_type(file: Path, name: str, dtype: str) -> InvalidModel:
    """The error for a tensor of a type that its weights can't have."""
    return InvalidModel(
        f"{file}: tensor {name} has type {dtype}; use the checkpoint with plain float weights"
    )


def _check_offsets(file: Path, tensors: list[TensorHeader], data: int, size: int) -> None:
    """Tensors must follow one another without gaps, from the header to the end of the file."""
    if tensors and tensors[0].begin != data:
        raise _incomplete(file, f"tensor {tensors[0].name} does not begin where the header ends")
    for before, after in pairwise(tensors):
        if before.begin + before.num_bytes != after.begin:
            raise _incomplete(file, f"tensor {after.name} does not begin where {before.name} ends")
    end = tensors[-1].begin + tensors[-1].num_bytes if tensors else data
    if end != size:
        raise _incomplete(file, f"it has {size} bytes but should have {end}")


def _are_counts(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _incomplete(file: Path, reason: str) -> InvalidModel:
    return InvalidModel(f"{file}: not a complete safetensors file ({reason}); download it again")
