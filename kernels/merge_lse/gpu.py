"""Partial results joined in plain torch operations, for any device."""

from __future__ import annotations

import torch


def merge_lse(outs: torch.Tensor, lses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Joins partial attention results over disjoint keys: outs [n, ..., D], lses [n, ...] -> ([..., D], [...]).

    In fp32 (FlashAttention's split-K merge). A part with lse = -inf weighs nothing, whatever its out holds;
    where all parts are empty, out is 0 and lse -inf. Raises ValueError if there is no part or shapes do not fit.
    """
    if not len(outs) or outs.shape[:-1] != lses.shape:
        raise ValueError(
            f"outs {tuple(outs.shape)}, lses {tuple(lses.shape)}; expected [n, ..., D] and [n, ...]"
        )
    lses = lses.float()
    peak = lses.amax(dim=0)
    weights = torch.exp(lses - peak.masked_fill(peak == -torch.inf, 0.0))
    total = weights.sum(dim=0)
    weighted = torch.where(weights[..., None] == 0, 0.0, outs.float() * weights[..., None])
    out = weighted.sum(dim=0) / total.masked_fill(total == 0, 1.0)[..., None]
    return out, peak + torch.log(total)
