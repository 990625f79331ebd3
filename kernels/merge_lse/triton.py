"""Partial results joined on the GPU: one program for each row, one pass over its parts."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from moorage.kernels.triton_support import power_of_2


@triton.jit(do_not_specialize=["num_rows", "num_parts"])
def _merge(
    outs,
    lses,
    out,
    lse,
    num_rows,
    num_parts,
    DIM: tl.constexpr,
    PAD_DIM: tl.constexpr,
    PAD_PARTS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, PAD_PARTS)
    channel = tl.arange(0, PAD_DIM)
    part_lse = tl.load(lses + part * num_rows + row, mask=part < num_parts, other=-float("inf"))
    peak = tl.max(part_lse, axis=0)
    # Without any key all parts are -inf; a difference of infinities would be NaN.
    weights = tl.exp(part_lse - tl.where(peak == -float("inf"), 0.0, peak))
    total = tl.sum(weights, axis=0)
    used = (weights > 0)[:, None] & (channel < DIM)[None, :]
    # An unused part may hold anything, so it is not read.
    parts = tl.load(outs + (part[:, None] * num_rows + row) * DIM + channel[None, :], mask=used, other=0.0)
    joined = tl.sum(parts.to(tl.float32) * weights[:, None], axis=0) / tl.where(total == 0, 1.0, total)
    tl.store(out + row * DIM + channel, joined, mask=channel < DIM)
    tl.store(lse + row, peak + tl.log(tl.where(total == 0, 1.0, total)))


def merge_lse(outs: torch.Tensor, lses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """See the package; outs [n, ..., D] contiguous, lses [n, ...] in fp32.

    The number of parts is an argument of the kernel, so that another number compiles at most another power of two.
    """
    num_parts, dim = len(outs), outs.shape[-1]
    outs, lses = outs.contiguous(), lses.float().contiguous()
    out = torch.empty(outs.shape[1:], dtype=torch.float32, device=outs.device)
    lse = torch.empty(lses.shape[1:], dtype=torch.float32, device=outs.device)
    if lse.numel():
        _merge[(lse.numel(),)](
            outs, lses, out, lse, lse.numel(), num_parts, dim, power_of_2(dim, 16), power_of_2(num_parts, 2)
        )
    return out, lse
