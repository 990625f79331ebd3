"""Causal attention over a whole sequence, through which gradients flow."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention of q [T, Hq, D] over k and v [T, Hkv, D], all rotated and in fp32: [T, Hq, D].

    A query attends its last `window` tokens. Scaled products become `softcap` * tanh(product / `softcap`). `sinks`
    [Hq] are logits without a value.
    """
    q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    if softcap is None and sinks is None:
        mask = None if window is None else _mask(q.shape[1], window, q.device)
        out = functional.scaled_dot_product_attention(
            q[None], k[None], v[None], attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=True
        )[0]
        return out.transpose(0, 1)
    mask = _mask(q.shape[1], window, q.device)
    group = len(q) // len(k)
    parts = []
    for head in range(len(k)):
        of_head = slice(head * group, (head + 1) * group)
        logits = q[of_head] @ k[head].T * scale
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        logits = logits.masked_fill(~mask, -torch.inf)
        if sinks is not None:
            sink = sinks[of_head].float()[:, None, None].expand(-1, logits.shape[1], 1)
            logits = torch.cat((logits, sink), dim=-1)
        weights = logits.softmax(dim=-1)[..., : k.shape[1]]
        parts.append(weights @ v[head])
    return torch.cat(parts).transpose(0, 1)


def _mask(length: int, window: int | None, device: torch.device) -> Tensor:
    """Which keys [T] each query [T] attends."""
    behind = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    return (behind >= 0) if window is None else (behind >= 0) & (behind < window)
