"""The norm in plain torch operations, for any device."""

from __future__ import annotations

import torch


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """See the package."""
    if x.dtype == torch.float32:
        return torch.rms_norm(x, x.shape[-1:], weight, eps)
    wide = x.float()
    normed = (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)
    return (weight * normed).to(x.dtype)


def add_rms_norm(x: torch.Tensor, added: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """See the package."""
    x += added
    return rms_norm(x, weight, eps)
