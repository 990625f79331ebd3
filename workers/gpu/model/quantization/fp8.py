"""FP8 weights of E4M3, used as weights alone: activations are not rounded to eight bits.

`fp8` with blocks (DeepSeek-V3, Qwen3-FP8): weight [out, in] and weight_scale_inv [out / rows, in / columns];
`fp8` without (AutoFP8): weight_scale of the whole weight; `fbgemm_fp8`: weight_scale [out, 1].
weight = code * scale. Static scales of activations are read past.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moorage.kernels.code_kinds import CodeKind
from moorage.workers.gpu.model.matrix_kind import MatrixKind
from moorage.workers.gpu.model.quantization.base import (
    FLOATS,
    StoredTensor,
)
from moorage.workers.hf_fields import Fields

if TYPE_CHECKING:
    from torch import Tensor

    from moorage.workers.gpu.model.quantized import Matrix

CODES = ("F8_E4M3",)
LEAST_GROUP = 8
"""Channels of the smallest group that a matrix can have."""


@dataclass(frozen=True, slots=True)
class Fp8:
    """See WeightFormat."""

    block: tuple[int, int] | None
    """Rows and columns that share a scale; None where `per_row` says it."""
    per_row: bool
    scale_name: str

    @property
    def marks(self) -> tuple[str, ...]:
        """See WeightFormat."""
        return (self.scale_name,)

    def tensors(self, shape: tuple[int, int]) -> Mapping[str, StoredTensor]:
        """See WeightFormat."""
        self._group(shape)
        return {
            "weight": StoredTensor(shape, CODES),
            self.scale_name: StoredTensor(self._scales(shape), FLOATS),
            "input_scale": StoredTensor((), FLOATS, optional=True),
            "input_scale_ub": StoredTensor((1,), FLOATS, optional=True),
        }

    def _scales(self, shape: tuple[int, int]) -> tuple[int, ...]:
        if self.block is not None:
            return tuple(-(-size // step) for size, step in zip(shape, self.block, strict=True))
        return (shape[0], 1) if self.per_row else ()

    def _group(self, shape: tuple[int, int]) -> int:
        """Channels of a group of the loaded matrix."""
        width = shape[1]
        group = width if self.block is None else min(self.block[1], width)
        while width % group:
            group //= 2
        if group % LEAST_GROUP:
            raise ValueError(f"rows of {width} can't be divided into groups of {LEAST_GROUP} times n")
        return group

    def kind(self, shape: tuple[int, int]) -> MatrixKind:
        """See WeightFormat."""
        return MatrixKind(CodeKind.FLOAT8, self._group(shape), scale_bytes=4, has_minima=False)

    def matrix(self, stored: Mapping[str, Tensor], shape: tuple[int, int]) -> Matrix:
        """See WeightFormat."""
        from moorage.workers.gpu.model.quantization.decode import float8

        return float8(stored["weight"], stored[self.scale_name], self.block, self._group(shape))


def read(config: Fields) -> Fp8:
    """See FormatReader."""
    if config.get("fmt") not in (None, "e4m3", "float8_e4m3fn"):
        raise config.wrong("fmt", "e4m3, the only float of 8 bits that is supported")
    blocks = config.get("weight_block_size")
    if blocks is None:
        return Fp8(None, False, "weight_scale")
    if not isinstance(blocks, list) or len(blocks) != 2 or not all(type(b) is int and b > 0 for b in blocks):
        raise config.wrong("weight_block_size", "two numbers of rows and columns")
    return Fp8((blocks[0], blocks[1]), False, "weight_scale_inv")


def read_fbgemm(config: Fields) -> Fp8:
    """See FormatReader."""
    del config
    return Fp8(None, True, "weight_scale")
