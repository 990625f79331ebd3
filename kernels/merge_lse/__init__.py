"""Joins partial attention results by their log-sum-exp."""

from __future__ import annotations

import torch

from moorage.kernels.merge_lse import gpu
from moorage.kernels.triton_support import has_triton


def merge_lse(outs: torch.Tensor, lses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Joins partial attention results over disjoint keys: outs [n, ..., D], lses [n, ...] -> ([..., D], [...]).

    In fp32 (FlashAttention's split-K merge). A part with lse = -inf weighs nothing, whatever its out holds;
    where all parts are empty, out is 0 and lse -inf. Raises ValueError if there is no part or shapes do not fit.
    """
    if not len(outs) or outs.shape[:-1] != lses.shape:
        raise ValueError(
            f"outs {tuple(outs.shape)}, lses {tuple(lses.shape)}; expected [n, ..., D] and [n, ...]"
        )
    if outs.device.type == "cuda" and has_triton():
        from moorage.kernels.merge_lse import triton

        return triton.merge_lse(outs, lses)
    return gpu.merge_lse(outs, lses)


__all__ = ["merge_lse"]
