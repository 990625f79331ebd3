"""GPTQ (ICLR 2023) as AutoGPTQ and GPTQModel store it: 4 or 8 bits, a zero point and a scale for each group.

qweight int32 [in * bits / 32, out] holds neighbouring input channels in an element; qzeros [groups, out * bits / 32]
neighbouring output channels, each less by one in the format `gptq` and as it is in `gptq_v2`; scales [groups, out];
g_idx [in] says which group an input channel is of. weight = (code - zero) * scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moorage.workers.gpu.model.matrix_kind import MatrixKind, integers
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

ZERO_OFFSET = {"gptq": 1, "gptq_v2": 0}
"""What is added to a stored zero point, by `checkpoint_format`."""


@dataclass(frozen=True, slots=True)
class Gptq:
    """See WeightFormat."""

    bits: int
    group_size: int | None
    zero_offset: int
    reorders: bool
    """Whether g_idx may have groups of channels that are not neighbours (act-order)."""

    @property
    def marks(self) -> tuple[str, ...]:
        """See WeightFormat."""
        return ("qweight",)

    def tensors(self, shape: tuple[int, int]) -> Mapping[str, StoredTensor]:
        """See WeightFormat."""
        out, width = shape
        in_word = 32 // self.bits
        if out % in_word or width % in_word:
            raise ValueError(f"{out} rows of {width} can't be packed by {in_word}")
        groups = groups_of(width, self.group_size)
        return {
            "qweight": StoredTensor((width // in_word, out), WORDS),
            "qzeros": StoredTensor((groups, out // in_word), WORDS),
            "scales": StoredTensor((groups, out), FLOATS),
            "g_idx": StoredTensor((width,), ("I32", "I64"), optional=True),
        }

    def kind(self, shape: tuple[int, int]) -> MatrixKind:
        """See WeightFormat."""
        return MatrixKind(
            integers(self.bits),
            self.group_size or shape[1],
            scale_bytes=4,
            has_minima=True,
            has_order=self.reorders,
        )

    def matrix(self, stored: Mapping[str, Tensor], shape: tuple[int, int]) -> Matrix:
        """See WeightFormat."""
        from moorage.workers.gpu.model.quantization.decode import affine, order_of_groups, unpacked

        out, width = shape
        codes = unpacked(stored["qweight"], self.bits, 0, width).T
        zeros = unpacked(stored["qzeros"], self.bits, 1, out) + self.zero_offset
        # A zero point of 0 is stored as -1, of which the bits of one code are left.
        zeros = zeros & (2**self.bits - 1)
        groups = groups_of(width, self.group_size)
        order = order_of_groups(stored.get("g_idx"), width, groups, self.reorders)
        return affine(codes, stored["scales"].T, zeros.T, bits=self.bits, order=order)


def read(config: Fields) -> Gptq:
    """See FormatReader."""
    bits = config.positive_int("bits")
    if bits not in (4, 8):
        raise config.wrong("bits", "4 or 8, the only widths of GPTQ that are supported")
    name = config.get("checkpoint_format") or "gptq"
    if name not in ZERO_OFFSET:
        raise config.wrong("checkpoint_format", " or ".join(ZERO_OFFSET))
    return Gptq(bits, group_size_of(config), ZERO_OFFSET[str(name)], config.flag("desc_act"))
