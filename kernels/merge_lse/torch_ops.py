"""Torch form of `merge_lse`, for any device."""

from __future__ import annotations

import torch


def merge_lse(outs: torch.Tensor, lses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Joins partial attention results over disjoint keys: outs [n, ..., D], lses [n, ...] -> ([..., D], [...]).

    In fp32 (FlashAttention's split-K merge). A part with lse = -inf weighs nothing, whatever its out holds;
    where all parts are empty, out is 0 and lse -inf.
    """
    lses = lses.float()
    peak = lses.amax(dim=0)
    weights = torch.exp(lses - peak.masked_fill(peak == -torch.inf, 0.0))
    total = weights.sum(dim=0)
    present = weights.unsqueeze(-1) > 0
    summed = torch.where(present, outs.float() * weights.unsqueeze(-1), 0.0).sum(dim=0)
    return summed / total.clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(-1), peak + torch.log(total)
