"""AWQ (MLSys 2024) as AutoAWQ's GEMM version stores it: 4 bits, a zero point and a scale for each group.

qweight int32 [in, out / 8] holds eight output channels in an element, in the order ORDER; qzeros [in / group,
out / 8] likewise; scales [in / group, out]. weight = (code - zero) * scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moorage.kernels.code_kinds import CodeKind
from moorage.workers.gpu.model.matrix_kind import MatrixKind
from moorage.workers.gpu.model.quantization.base import (
    FLOATS,
    WORDS,
    StoredTensor,
    group_size_of,
    groups_of,
)
from moorage.workers.hf_fields import Fields

if TYPE_CHECKING:
    from torch import Tensor

    from moorage.workers.gpu.model.quantized import Matrix

BITS, IN_WORD = 4, 8
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""ORDER[i] is the channel, of eight, that bits [4 i, 4 i + 4) of an element belong to."""


@dataclass(frozen=True, slots=True)
class Awq:
    """See WeightFormat."""

    group_size: int | None

    @property
    def marks(self) -> tuple[str, ...]:
        """See WeightFormat."""
        return ("qweight",)

    def tensors(self, shape: tuple[int, int]) -> Mapping[str, StoredTensor]:
        """See WeightFormat."""
        out, width = shape
        if out % IN_WORD:
            raise ValueError(f"{out} rows can't be packed by {IN_WORD}")
        groups = groups_of(width, self.group_size)
        return {
            "qweight": StoredTensor((width, out // IN_WORD), WORDS),
            "qzeros": StoredTensor((groups, out // IN_WORD), WORDS),
            "scales": StoredTensor((groups, out), FLOATS),
        }

    def kind(self, shape: tuple[int, int]) -> MatrixKind:
        """See WeightFormat."""
        return MatrixKind(CodeKind.INT4, self.group_size or shape[1], scale_bytes=4, has_minima=True)

    def matrix(self, stored: Mapping[str, Tensor], shape: tuple[int, int]) -> Matrix:
        """See WeightFormat."""
        from moorage.workers.gpu.model.quantization.decode import affine

        codes, zeros = (_channels(stored[name], shape[0]) for name in ("qweight", "qzeros"))
        return affine(codes.T, stored["scales"].T, zeros.T, bits=BITS)


def _channels(packed: Tensor, out: int) -> Tensor:
    """uint8 [n, out] of int32 [n, out / 8]."""
    from moorage.workers.gpu.model.quantization.decode import unpacked

    codes = unpacked(packed, BITS, 1, out).view(len(packed), -1, IN_WORD)
    return codes[..., [ORDER.index(channel) for channel in range(IN_WORD)]].flatten(1)


def read(config: Fields) -> Awq:
    """See FormatReader."""
    if config.positive_int("bits", BITS) != BITS:
        raise config.wrong("bits", f"{BITS}, the only width of AWQ that is supported")
    if str(config.get("version") or "gemm").lower() != "gemm":
        raise config.wrong("version", "gemm; other versions pack their weights in other orders")
    if not config.flag("zero_point", True):
        raise config.wrong("zero_point", "true")
    return Awq(group_size_of(config))
