"""Soft caps of logits in torch operations."""

from __future__ import annotations

import torch


def capped(logits: torch.Tensor, softcap: float) -> torch.Tensor:
    """softcap * tanh(logits / softcap), in place; a softcap of 0 leaves them as they are (Gemma 2)."""
    return logits.div_(softcap).tanh_().mul_(softcap) if softcap else logits
