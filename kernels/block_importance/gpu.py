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
    for part, rows, logits in _logits(queries, keys, scale, band, q_start, k_start, softcap):
        of_rows = lse[:, rows].float().reshape(len(keys), -1, 1)
        # A row without any key has lse -inf, and only -inf logits.
        found[:, part] = torch.exp(logits - of_rows).nan_to_num_(nan=0.0).sum(dim=1)
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
    found = torch.full(queries.shape[:2], -math.inf, device=keys.device)
    for _, rows, logits in _logits(queries, keys, scale, band, q_start, k_start, softcap):
        part = torch.logsumexp(logits, dim=2).view(len(queries), -1)
        found[:, rows] = torch.logaddexp(found[:, rows], part)
    return found


def _logits(
    queries: torch.Tensor,
    keys: torch.Tensor,
    scale: float,
    band: tuple[int, int] | None,
    q_start: int,
    k_start: int,
    softcap: float,
) -> Iterator[tuple[slice, slice, torch.Tensor]]:
    """(keys, queries, their logits [Hkv, G * t, n]) by tiles, -inf where a key is not visible.

    A tile has the queries that see any of its keys: of a band far narrower than the queries are many, most are left
    out.
    """
    num_heads, num_rows, dim = queries.shape
    tile = max(1, MAX_TILE_BYTES // (4 * num_heads * max(num_rows, 1)))
    for start in range(0, keys.shape[1], tile):
        part = slice(start, min(start + tile, keys.shape[1]))
        rows = slice(0, num_rows) if band is None else _seeing(part, band, q_start - k_start, num_rows)
        if rows.start >= rows.stop:
            continue
        folded = queries[:, rows].float().reshape(len(keys), -1, dim)
        logits = capped(folded @ keys[:, part].float().transpose(1, 2) * scale, softcap)
        if band is not None:
            places = torch.arange(part.start, part.stop, device=keys.device) + k_start
            positions = torch.arange(rows.start, rows.stop, device=keys.device) + q_start
            away = positions[:, None] - places
            hidden = (away < band[0]) | (away >= band[1])
            logits.view(num_heads, rows.stop - rows.start, -1).masked_fill_(hidden, -math.inf)
        yield part, rows, logits


def _seeing(keys: slice, band: tuple[int, int], shift: int, num_rows: int) -> slice:
    """The rows that see any of the `keys`; row r is `shift` + r - c away from key c."""
    first = min(max(0, keys.start + band[0] - shift), num_rows)
    return slice(first, max(first, min(num_rows, keys.stop - 1 + band[1] - shift)))
