"""Importance from the definition, in fp64."""

from __future__ import annotations

import math

import torch


def token_importance(
    queries: torch.Tensor,
    keys: torch.Tensor,
    lse: torch.Tensor,
    scale: float,
    band: tuple[int, int] | None,
    q_start: int = 0,
    k_start: int = 0,
    softcap: float = 0.0,
) -> torch.Tensor:
    """See gpu.py."""
    found = torch.zeros(keys.shape[:2], dtype=torch.float64)
    for head in range(len(queries)):
        for row in range(queries.shape[1]):
            for c, logit in _visible(queries, keys, scale, band, q_start, k_start, head, row, softcap):
                found[head * len(keys) // len(queries), c] += math.exp(logit - float(lse[head, row]))
    return found


def attention_lse(
    queries: torch.Tensor,
    keys: torch.Tensor,
    scale: float,
    band: tuple[int, int] | None,
    q_start: int = 0,
    k_start: int = 0,
    softcap: float = 0.0,
) -> torch.Tensor:
    """See gpu.py."""
    found = torch.full(queries.shape[:2], -math.inf, dtype=torch.float64)
    for head in range(len(queries)):
        for row in range(queries.shape[1]):
            total = sum(
                math.exp(logit)
                for _, logit in _visible(queries, keys, scale, band, q_start, k_start, head, row, softcap)
            )
            found[head, row] = math.log(total) if total else -math.inf
    return found


def _visible(
    queries: torch.Tensor,
    keys: torch.Tensor,
    scale: float,
    band: tuple[int, int] | None,
    q_start: int,
    k_start: int,
    head: int,
    row: int,
    softcap: float,
) -> list[tuple[int, float]]:
    """(key, logit) of the keys that a row sees."""
    low, high = band or (-math.inf, math.inf)
    seen = [c for c in range(keys.shape[1]) if low <= (q_start + row) - (k_start + c) < high]
    query, head_keys = queries[head, row].double(), keys[head * len(keys) // len(queries)].double()
    logits = {c: scale * float(query @ head_keys[c]) for c in seen}
    return [(c, softcap * math.tanh(x / softcap) if softcap else x) for c, x in logits.items()]
