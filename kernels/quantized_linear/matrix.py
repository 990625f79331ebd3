"""A matrix of quantised weights: codes of 4 or 8 bits, with a scale and perhaps a minimum for each group of a row.

Rows are interleaved by PANEL, so that a vector of PANEL lanes holds the same input channel of PANEL output channels:
a product with one row of activations then needs no sum across lanes, and reads codes, scales and minima in order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from moorage.kernels.code_kinds import PANEL, CodeKind

WORD_CODES = 8
"""Codes of 4 bits in a 32-bit word; the lowest bits hold the first channel."""
INT4_ZERO = 8
"""The code of 4 bits that stands for 0 where there are no minima."""


@dataclass(frozen=True, slots=True)
class QuantizedMatrix:
    """A matrix [out, in]. Tensors are [panels, ..., PANEL]; scales and minima are float16 or, both, float32."""

    codes: Tensor
    """int32 words [panels, in / WORD_CODES, PANEL] for 4 bits; int8 or, for FLOAT8, uint8 [panels, in, PANEL]."""
    scales: Tensor
    """[panels, groups, PANEL]; each is for in / groups consecutive channels of a row."""
    minima: Tensor | None
    """Minima in the shape of `scales`; None is 0."""
    table: Tensor | None
    """float32 [16], for TABLE4."""
    num_rows: int
    """out."""

    @classmethod
    def empty(
        cls,
        shape: tuple[int, int],
        group_size: int,
        kind: CodeKind,
        *,
        has_minima: bool = False,
        scale_dtype: torch.dtype = torch.float16,
        table: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> QuantizedMatrix:
        """A matrix whose weights are not defined yet. The padding of its last panel is 0."""
        num_rows, width = shape
        if num_rows < 1 or group_size < WORD_CODES or group_size % WORD_CODES or width % group_size:
            raise ValueError(
                f"shape {list(shape)}, groups of {group_size}; a row must be whole groups of {WORD_CODES} times n"
            )
        if (kind is CodeKind.TABLE4) != (table is not None):
            raise ValueError(f"{kind} codes {'need a' if table is None else 'have no'} table")
        panels = -(-num_rows // PANEL)
        if kind.bits == 4:
            codes = torch.empty(panels, width // WORD_CODES, PANEL, dtype=torch.int32, device=device)
        else:
            dtype = torch.uint8 if kind is CodeKind.FLOAT8 else torch.int8
            codes = torch.empty(panels, width, PANEL, dtype=dtype, device=device)
        scales = torch.empty(panels, width // group_size, PANEL, dtype=scale_dtype, device=device)
        minima = torch.empty_like(scales) if has_minima else None
        matrix = cls(codes, scales, minima, None if table is None else table.float().to(device), num_rows)
        if num_rows % PANEL:
            for tensor in matrix.row_tensors():
                tensor[-1].zero_()
        return matrix

    @property
    def kind(self) -> CodeKind:
        """What a code stands for."""
        if self.codes.dtype == torch.int32:
            return CodeKind.INT4 if self.table is None else CodeKind.TABLE4
        return CodeKind.FLOAT8 if self.codes.dtype == torch.uint8 else CodeKind.INT8

    @property
    def width(self) -> int:
        """in."""
        return self.codes.shape[1] * (WORD_CODES if self.codes.dtype == torch.int32 else 1)

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.num_rows, self.width

    @property
    def group_size(self) -> int:
        """Channels that share a scale."""
        return self.width // self.scales.shape[1]

    @property
    def device(self) -> torch.device:
        """The device of all tensors."""
        return self.codes.device

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors but the table."""
        return sum(tensor.nbytes for tensor in self.row_tensors())

    def row_tensors(self) -> Iterator[Tensor]:
        """The tensors [panels, ..., PANEL]."""
        yield from (self.codes, self.scales)
        if self.minima is not None:
            yield self.minima

    def tensors(self) -> Iterator[Tensor]:
        """All tensors."""
        yield from self.row_tensors()
        if self.table is not None:
            yield self.table

    def rows(self, begin: int, end: int) -> QuantizedMatrix:
        """A view of rows [begin, end); both are multiples of PANEL, or `end` is the end of the matrix."""
        if begin % PANEL or not 0 <= begin < end <= self.num_rows or (end % PANEL and end < self.num_rows):
            raise ValueError(f"rows {begin} to {end} of {self.num_rows} are not whole panels of {PANEL}")
        first, last = begin // PANEL, -(-end // PANEL)
        return replace(
            self,
            codes=self.codes[first:last],
            scales=self.scales[first:last],
            minima=None if self.minima is None else self.minima[first:last],
            num_rows=end - begin,
        )

    def copy_(self, other: QuantizedMatrix) -> None:
        """Copies a matrix of the same shape, groups, kind and types, its table included."""
        ours, theirs = list(self.row_tensors()), list(other.row_tensors())
        if self.kind != other.kind or [t.shape for t in ours] != [t.shape for t in theirs]:
            raise ValueError(
                f"a matrix {list(other.shape)} of {other.kind} does not fit {list(self.shape)} of {self.kind}"
            )
        for target, source in zip(self.tensors(), other.tensors(), strict=True):
            target.copy_(source)
