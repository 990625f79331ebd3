"""Quantised matrices from the tensors of checkpoints."""

from __future__ import annotations

import torch
from torch import Tensor

from moorage.workers.gpu.model.quantized import Matrix, ReorderedMatrix, pack

WORD_BITS = 32


def unpacked(packed: Tensor, bits: int, dim: int, count: int) -> Tensor:
    """uint8 codes of int32 `packed`, whose elements hold 32 / bits neighbours along `dim`, lowest bits first.

    `count` is the size of `dim` afterwards; what the last element holds beyond it is cut off.
    """
    along = packed.movedim(dim, -1)
    shifts = torch.arange(0, WORD_BITS, bits, dtype=torch.int32)
    codes = (along.unsqueeze(-1) >> shifts).bitwise_and_(2**bits - 1)
    return codes.to(torch.uint8).flatten(-2)[..., :count].movedim(-1, dim)


def affine(
    codes: Tensor, scales: Tensor, zeros: Tensor | None, *, bits: int, order: Tensor | None = None
) -> Matrix:
    """The matrix of (code - zero) * scale: `codes` uint8 [out, in], `scales` and `zeros` [out, groups].

    `zeros` None is the middle of the codes' range. `order` int64 [in] says which input channel stands at each place
    of the groups; None is the channels' own order. Scales stay float32, so that a weight has the format's own value.
    """
    middle = 2 ** (bits - 1)
    if order is not None:
        codes = codes[:, order]
    if bits == 8:
        codes = (codes.to(torch.int16) - middle).to(torch.int8)
    scales, minima = scales.float(), None
    if zeros is not None:
        minima = ((middle if bits == 8 else 0) - zeros.float()) * scales
    matrix = pack(codes, scales, minima, bits=bits, scale_dtype=torch.float32)
    return matrix if order is None else ReorderedMatrix(matrix, order)


def order_of_groups(group_of: Tensor | None, width: int, groups: int, reorders: bool) -> Tensor | None:
    """The input channels sorted by their group, int64 [in]; None without `reorders`, where neighbours are groups.

    Raises ValueError where groups differ in size, and where they are not as `reorders` says.
    """
    expected = torch.arange(width) // (width // groups)
    if group_of is None:
        group_of = expected
    if not reorders:
        if not torch.equal(group_of.long(), expected):
            raise ValueError("g_idx reorders the channels, though desc_act is not true")
        return None
    sorted_groups, order = torch.sort(group_of.long(), stable=True)
    if not torch.equal(sorted_groups, expected):
        raise ValueError(f"g_idx does not divide {width} channels into {groups} groups of one size")
    return order


def float8(codes: Tensor, scales: Tensor, block: tuple[int, int] | None, group: int) -> Matrix:
    """The matrix of `codes` float8_e4m3fn [out, in], whose `scales` are of blocks, of rows [out, 1] or of all []."""
    out, width = codes.shape
    if block is not None:
        by_row = scales.float().repeat_interleave(block[0], 0)[:out]
        by_group = by_row.repeat_interleave(-(-block[1] // group), 1)[:, : width // group]
    else:
        by_group = scales.float().reshape(-1, 1).expand(out, 1)
    return pack(codes, by_group.contiguous(), bits=8, scale_dtype=torch.float32)


def unsigned(codes: Tensor) -> Tensor:
    """uint8 of int8 `codes`, each plus 128."""
    return (codes.to(torch.int16) + 128).to(torch.uint8)
