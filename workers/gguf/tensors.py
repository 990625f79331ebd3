"""Reads tensors of GGUF files, as floats or as matrices of their own codes, piece by piece."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moorage.kernels.quantized_linear import PANEL, CodeKind, QuantizedMatrix, pack
from moorage.kernels.quantized_linear.matrix import INT4_ZERO
from moorage.workers.errors import InvalidModel
from moorage.workers.gguf.blocks import LAYOUTS, Blocks, take_apart
from moorage.workers.gguf.matrices import KINDS
from moorage.workers.gguf.types import BY_NAME
from moorage.workers.gguf.weights import GgufTensor
from moorage.workers.gpu.model.matrix_kind import MatrixKind
from moorage.workers.gpu.model.quantized import empty_matrix

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


@dataclass(frozen=True, slots=True)
class MatrixReader:
    """Reads rows of a tensor of a type that KINDS has, as a matrix of the file's own codes."""

    header: GgufTensor

    def rows(self, begin: int, end: int) -> QuantizedMatrix:
        """Rows [begin, end); those of experts stand one after the other. Raises InvalidModel where the file ends."""
        return self._matrix(self._raw(begin, end))

    def picked(self, rows: Tensor) -> QuantizedMatrix:
        """The rows int64 [n], in this order."""
        return self._matrix(self._raw(0, prod(self.header.shape[:-1]))[rows])

    def _raw(self, begin: int, end: int) -> Tensor:
        """The bytes of rows, [end - begin, bytes of a row]."""
        header = self.header
        row_bytes = header.num_bytes // prod(header.shape[:-1])
        raw = _read(header, header.begin + begin * row_bytes, (end - begin) * row_bytes)
        return torch.from_numpy(raw).view(end - begin, row_bytes)

    def _matrix(self, raw: Tensor) -> QuantizedMatrix:
        kind, block = KINDS[self.header.dtype], BY_NAME[self.header.dtype]
        width = self.header.shape[-1]
        matrix = empty_matrix((len(raw), width), kind, "cpu")
        assert isinstance(matrix, QuantizedMatrix)
        at_once = max(1, PIECE_ELEMENTS // width // PANEL) * PANEL
        for begin in range(0, len(raw), at_once):
            piece = raw[begin : begin + at_once].reshape(-1, block.num_bytes)
            part = _packed(take_apart(piece, self.header.dtype), kind, width)
            matrix.rows(begin, begin + part.num_rows).copy_(part)
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


def _pieces(header: GgufTensor) -> Iterator[NDArray[np.uint8]]:
    """The bytes of a tensor in pieces of whole blocks."""
    block = BY_NAME[header.dtype]
    at_once = PIECE_ELEMENTS // block.elements * block.num_bytes
    end = header.begin + header.num_bytes
    for begin in range(header.begin, end, at_once):
        yield _read(header, begin, min(at_once, end - begin))


def _read(header: GgufTensor, begin: int, num_bytes: int) -> NDArray[np.uint8]:
    """Bytes of the file. Raises InvalidModel where it ends before."""
    try:
        piece = np.fromfile(header.file, np.uint8, num_bytes, offset=begin)
    except OSError as error:
        raise InvalidModel(
            f"{header.file}: can't be read ({error.strerror or error}); check the file"
        ) from None
    if len(piece) != num_bytes:
        raise InvalidModel(f"{header.file}: ends within tensor {header.name}; download it again")
    return piece


def _floats(piece: NDArray[np.uint8], dtype: str) -> Tensor:
    """The elements f32 of whole blocks."""
    # Only where a file is read, since a GPU is also measured where the package is not installed.
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    blocks = piece.reshape(-1, BY_NAME[dtype].num_bytes)
    if dtype in LAYOUTS:
        return take_apart(torch.from_numpy(blocks), dtype).values().view(-1)
    if dtype in _PLAIN:
        return torch.from_numpy(piece).view(_PLAIN[dtype]).float()
    # A file may hold the bits of any number, and NaN is reported by the caller.
    with np.errstate(all="ignore"):
        values = dequantize(blocks, GGMLQuantizationType[dtype])
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).view(-1)
