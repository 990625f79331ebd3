"""MXFP4 (OCP microscaling formats 1.0): floats of 4 bits, 32 of which share a power of two."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from moorage.kernels.quantized_linear import CodeKind, pack
from moorage.workers.gpu.model.matrix_rows import MatrixRows, Target, is_filled_finite

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""The value of each code: a sign, two bits of exponent, one of mantissa."""
E8M0 = (*(2.0 ** (code - 127) for code in range(255)), float("nan"))
"""The power of two of each code of a scale."""


def powers_of(scales: Tensor) -> Tensor:
    """The powers of two of uint8 `scales`, float32."""
    return torch.tensor(E8M0, device=scales.device)[scales.int()]


def decode(blocks: Tensor, scales: Tensor) -> Tensor:
    """float32 weights [out, in] of `blocks` [out, groups, bytes] and `scales` [out, groups], both uint8."""
    values = torch.tensor(E2M1, device=blocks.device)
    by_byte = torch.stack(
        (values.repeat(16), values.repeat_interleave(16)), dim=-1
    )  # the low code comes first
    return (by_byte[blocks.int()].flatten(2) * powers_of(scales).unsqueeze(-1)).flatten(1)


@dataclass(slots=True)
class Mxfp4Slot:
    """Views of parts of all experts [experts, out, in], which two tensors of a checkpoint fill once both are there.

    Codes are [experts, rows, groups, bytes], scales [experts, rows, groups].
    """

    targets: tuple[Target, ...]
    interleaved: bool
    """Whether rows of the parts alternate."""
    _given: dict[int, Tensor] = field(default_factory=dict)
    """The tensors that have come, by their number of axes."""

    def fill(self, tensor: Tensor) -> None:
        """Takes either tensor, and decodes expert by expert when it has both."""
        self._given[tensor.dim()] = tensor
        if len(self._given) < 2:
            return
        for expert, (blocks, scales) in enumerate(zip(self._given[4], self._given[3], strict=True)):
            for part, target in enumerate(self.targets):
                rows = self._rows(part)
                _copy(blocks[rows], scales[rows], target[expert])
        self._given.clear()

    def is_finite(self) -> bool:
        """Whether no element is NaN or infinite; True before both tensors have come."""
        return bool(self._given) or all(is_filled_finite(rows) for target in self.targets for rows in target)

    def _rows(self, part: int) -> slice:
        if self.interleaved:
            return slice(part, None, len(self.targets))
        sizes = [target.shape[1] for target in self.targets]
        return slice(sum(sizes[:part]), sum(sizes[: part + 1]))


def _copy(blocks: Tensor, scales: Tensor, target: Target) -> None:
    """Copies one expert's rows, as they are where the target holds codes of this table."""
    if isinstance(target, MatrixRows) and target.code is CodeKind.TABLE4:
        codes = torch.stack((blocks & 15, blocks >> 4), dim=-1).flatten(1)
        powers = powers_of(scales)
        target.copy_matrix(pack(codes, powers, bits=4, table=torch.tensor(E2M1), scale_dtype=powers.dtype))
    else:
        target.copy_(decode(blocks, scales))
