"""Slow form of `attend_dense`, in fp64."""

from __future__ import annotations

import math

import torch


def attend_dense(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    band: tuple[int, int] | None = None,
    q_start: int = 0,
    k_start: int = 0,
    softcap: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(out [Hq, T, D], lse [Hq, T]) in fp64 of q [Hq, T, D] over k, v [Hkv, N, D].

    The key at k_start + c is visible to the query at q_start + r if band is None or
    band[0] <= (q_start + r) - (k_start + c) < band[1]. A softcap c makes a scaled logit x to
    c * tanh(x / c). A row that sees no key has out 0 and lse -inf.
    """
    group = len(q) // len(k)
    out = torch.zeros(q.shape, dtype=torch.float64)
    lse = torch.full(q.shape[:2], -math.inf, dtype=torch.float64)
    for head in range(len(q)):
        keys, values = k[head // group].double(), v[head // group].double()
        for row in range(q.shape[1]):
            seen = [
                c
                for c in range(len(keys))
                if band is None or band[0] <= q_start + row - k_start - c < band[1]
            ]
            if seen:
                logits = keys[seen] @ q[head, row].double() * scale
                if softcap:
                    logits = softcap * torch.tanh(logits / softcap)
                lse[head, row] = torch.logsumexp(logits, dim=0)
                out[head, row] = torch.softmax(logits, dim=0) @ values[seen]
    return out, lse
