"""Attention that each key receives from some queries, in plain torch operations that run on any device."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from moorage.kernels.softcap import capped

MAX_TILE_BYTES = 32 << 20
"""Logits held at once."""


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
    """[Hkv, N] fp32: the softmax probability of each key, summed over queries and the heads of its group.

    queries [Hq, T, D]; keys [Hkv, N, D]; lse [Hq, T] of the whole softmax (SnapKV, ktransformers' importance). A key
    at k_start + c is visible to the query at q_start + r iff band[0] <= (q_start + r) - (k_start + c) < band[1];
    None shows every key to every query. A softcap c makes a scaled logit x to c * tanh(x / c).
    """
    found = torch.zeros(keys.shape[:2], dtype=torch.float32, device=keys.device)
    rows = lse.float().reshape(len(keys), -1, 1)
    for part, logits in _logits(queries, keys, scale, band, q_start, k_start, softcap):
        # A row without any key has lse -inf, and only -inf logits.
        found[:, part] = torch.exp(logits - rows).nan_to_num_(nan=0.0).sum(dim=1)
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
    """[Hq, T] fp32: log of the sum of exponentials of the visible logits; -inf where there is none."""
    found = torch.full(
        (len(keys), len(queries) // len(keys) * queries.shape[1]), -math.inf, device=keys.device
    )
    for _, logits in _logits(queries, keys, scale, band, q_start, k_start, softcap):
        found = torch.logaddexp(found, torch.logsumexp(logits, dim=2))
    return found.view(queries.shape[:2])


def _logits(
    queries: torch.Tensor,
    keys: torch.Tensor,
    scale: float,
    band: tuple[int, int] | None,
    q_start: int,
    k_start: int,
    softcap: float,
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Tiles of logits [Hkv, G * T, n], -inf where a key is not visible."""
    num_heads, num_rows, dim = queries.shape
    folded = queries.float().reshape(len(keys), -1, dim)
    tile = max(1, MAX_TILE_BYTES // (4 * num_heads * max(num_rows, 1)))
    for start in range(0, keys.shape[1], tile):
        part = slice(start, min(start + tile, keys.shape[1]))
        logits = capped(folded @ keys[:, part].float().transpose(1, 2) * scale, softcap)
        if band is not None:
            places = torch.arange(part.start, part.stop, device=keys.device) + k_start
            rows = torch.arange(num_rows, device=keys.device) + q_start
            away = rows[:, None] - places
            hidden = (away < band[0]) | (away >= band[1])
            logits.view(num_heads, num_rows, -1).masked_fill_(hidden, -math.inf)
        yield part, logits
