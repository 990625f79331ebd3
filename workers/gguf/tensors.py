"""Reads tensors of GGUF files, as floats or as matrices of their own codes, piece by piece."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from moorage.kernels.quantized_linear import PANEL, CodeKind, QuantizedMatrix, pack
from moorage.kernels.quantized_linear.matrix import INT4_ZERO
from moorage.workers.errors import InvalidModel
from moorage.workers.gguf.blocks import LAYOUTS, Blocks, take_apart
from moorage.workers.gguf.matrices import KINDS
from moorage.workers.gguf.types import BY_NAME
from moorage.workers.gguf.weights import GgufTensor
from moorage.workers.gpu.model.quantized import empty_matrix
from moorage.workers.gpu.model.weight_plan import MatrixKind

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


def read_matrix(header: GgufTensor) -> QuantizedMatrix:
    """A tensor of a type that KINDS has, as a matrix of its own codes; experts stand one after the other.

    Raises InvalidModel when the file ends before it.
    """
    kind, width = KINDS[header.dtype], header.shape[-1]
    rows = prod(header.shape[:-1])
    matrix = empty_matrix((rows, width), kind, "cpu")
    assert isinstance(matrix, QuantizedMatrix)
    begin, block = 0, BY_NAME[header.dtype]
    for piece in _pieces(header, PANEL * (width // block.elements)):
        blocks = take_apart(torch.from_numpy(piece.reshape(-1, block.num_bytes)), header.dtype)
        part = _packed(blocks, kind, width)
        matrix.rows(begin, begin + part.num_rows).copy_(part)
        if matrix.table is not None and part.table is not None:
            matrix.table.copy_(part.table)
        begin += part.num_rows
    return matrix


def _packed(blocks: Blocks, kind: MatrixKind, width: int) -> QuantizedMatrix:
    """Whole rows of blocks as a matrix."""
    codes = blocks.codes.view(-1, width)
    if kind.code is CodeKind.INT4 and not kind.has_minima:
        codes = codes + (INT4_ZERO - blocks.zero)
    groups = (codes.shape[0], width // kind.group_size)
    return pack(
        codes,
        blocks.scales.reshape(groups),
        None if blocks.minima is None else blocks.minima.reshape(groups),
        bits=kind.code.bits,
        table=None if blocks.table is None else torch.tensor(blocks.table, dtype=torch.float32),
        scale_dtype={2: torch.float16, 4: torch.float32}[kind.scale_bytes],
    )


def _pieces(header: GgufTensor, multiple: int = 1) -> Iterator[NDArray[np.uint8]]:
    """The bytes of a tensor in pieces of whole blocks, `multiple` times n of them but for the last piece."""
    block = BY_NAME[header.dtype]
    blocks_at_once = max(1, PIECE_ELEMENTS // block.elements // multiple) * multiple
    at_once = blocks_at_once * block.num_bytes
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
