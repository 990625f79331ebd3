"""Partial results joined in plain torch operations, for any device."""

from __future__ import annotations

import torch


def merge_lse(outs: torch.Tensor, lses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """See the package."""
    lses = lses.float()
    peak = lses.amax(dim=0)
    weights = torch.exp(lses - peak.masked_fill(peak == -torch.inf, 0.0))
    total = weights.sum(dim=0)
    weighted = torch.where(weights[..., None] == 0, 0.0, outs.float() * weights[..., None])
    out = weighted.sum(dim=0) / total.masked_fill(total == 0, 1.0)[..., None]
    return out, peak + torch.log(total)
