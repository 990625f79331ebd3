"""Reads tensors of GGUF files as floats, piece by piece."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from moorage.workers.errors import InvalidModel
from moorage.workers.gguf.blocks import LAYOUTS, take_apart
from moorage.workers.gguf.types import BY_NAME
from moorage.workers.gguf.weights import GgufTensor

_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
PIECE_ELEMENTS = 1 << 22
"""Elements that are dequantised at once: 16 MiB of floats."""


def read_tensor(header: GgufTensor, dtype: torch.dtype) -> Tensor:
    """A tensor in float32, or in bfloat16 where that is `dtype`: other types would hide what is too large for them.

    Never is more than a piece of it held twice. Raises InvalidModel when the file ends before it.
    """
    out = torch.empty(header.shape, dtype=dtype if dtype is torch.bfloat16 else torch.float32)
    flat, begin = out.view(-1), 0
    for piece in _pieces(header):
        values = _floats(piece, header.dtype)
        flat[begin : begin + values.numel()] = values
        begin += values.numel()
    return out


def _pieces(header: GgufTensor) -> Iterator[NDArray[np.uint8]]:
    """The bytes of a tensor in pieces of whole blocks."""
    block = BY_NAME[header.dtype]
    at_once = PIECE_ELEMENTS // block.elements * block.num_bytes
    end = header.begin + header.num_bytes
    for begin in range(header.begin, end, at_once):
        count = min(at_once, end - begin)
        try:
            piece = np.fromfile(header.file, np.uint8, count, offset=begin)
        except OSError as error:
            raise InvalidModel(
                f"{header.file}: can't be read ({error.strerror or error}); check the file"
            ) from None
        if len(piece) != count:
            raise InvalidModel(f"{header.file}: ends within tensor {header.name}; download it again")
        yield piece


def _floats(piece: NDArray[np.uint8], dtype: str) -> Tensor:
    """The elements f32 of whole blocks."""
    blocks = piece.reshape(-1, BY_NAME[dtype].num_bytes)
    if dtype in LAYOUTS:
        return take_apart(torch.from_numpy(blocks), dtype).values().view(-1)
    if dtype in _PLAIN:
        return torch.from_numpy(piece).view(_PLAIN[dtype]).float()
    # A file may hold the bits of any number, and NaN is reported by the caller.
    with np.errstate(all="ignore"):
        values = dequantize(blocks, GGMLQuantizationType[dtype])
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).view(-1)
