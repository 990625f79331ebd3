"""Decode attention over blocks in plain torch operations, for any device; no wait for the device anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from moorage.kernels.merge_lse import merge_lse
from moorage.kernels.softcap import capped

Arrays = tuple[Any, ...]

PIECE_BYTES = 256 * 2**20
"""Most memory of the keys and values that are widened to fp32 at a time."""


def attend_blocks(
    query: torch.Tensor,
    blocks: torch.Tensor,
    entries: Arrays,
    rotations: Arrays,
    scale: float,
    softcap: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See the package; entries are (slot, begin, end), rotations the five arrays in the order of its arguments."""
    if not len(entries[0]):
        return torch.zeros_like(query), query.new_full(query.shape[:1], -torch.inf)
    parts = [_attend(*piece, softcap) for piece in _pieces(query, blocks, entries, rotations, scale)]
    outs, lses = (torch.stack(tensors) for tensors in zip(*parts, strict=True))
    return merge_lse(outs, lses)


def entry_lse(
    query: torch.Tensor,
    blocks: torch.Tensor,
    entries: Arrays,
    rotations: Arrays,
    scale: float,
    softcap: float = 0.0,
) -> torch.Tensor:
    """See the package."""
    found = [query.new_empty((0, len(query)))]
    for queries, keys, _, hidden in _pieces(query, blocks, entries, rotations, scale):
        groups = queries.view(*keys.shape[:2], -1, keys.shape[-1])
        logits = capped(torch.einsum("nhgd,nhtd->nhgt", groups, keys), softcap)
        found.append(
            torch.logsumexp(logits.masked_fill(hidden[:, None, None], -torch.inf), dim=-1).flatten(1)
        )
    return torch.cat(found)


def _pieces(
    query: torch.Tensor, blocks: torch.Tensor, entries: Arrays, rotations: Arrays, scale: float
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """(queries [n, Hq, D], keys, values [n, Hkv, B, D], hidden [n, B]) of some entries, ready for softmax."""
    _, _, num_kv_heads, block_size, dim = blocks.shape
    piece = max(1, PIECE_BYTES // (8 * num_kv_heads * block_size * dim))
    slot, begin, end, *turns = (_on(query.device, array) for array in (*entries, *rotations))
    angle_cos, angle_sin, rotate_keys, offset_cos, offset_sin = turns
    for a in range(0, len(slot), piece):
        part = slice(a, a + piece)
        keys, values = blocks[slot[part].long()].float().unbind(1)
        turned = _rotate(keys, offset_cos, offset_sin)
        keys = torch.where(rotate_keys[part, None, None, None].bool(), turned, keys)
        spread = query.expand(len(keys), -1, -1)
        queries = _rotate(spread, angle_cos[part, None], angle_sin[part, None]) * scale
        row = torch.arange(block_size, device=query.device)
        hidden = (row < begin[part, None]) | (row >= end[part, None])
        yield queries, keys, values, hidden


def _on(device: torch.device, array: Any) -> torch.Tensor:
    return torch.from_numpy(array).to(device, non_blocking=True)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = cos.shape[-1]
    low, high, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((low * cos - high * sin, high * cos + low * sin, rest), dim=-1)


def _attend(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, hidden: torch.Tensor, softcap: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """queries [n, Hq, D], keys, values [n, Hkv, B, D], hidden [n, B] -> out [Hq, D], lse [Hq]."""
    num_entries, num_kv_heads, _, dim = keys.shape
    groups = queries.view(num_entries, num_kv_heads, -1, dim)
    logits = capped(torch.einsum("nhgd,nhtd->hgnt", groups, keys), softcap)
    logits = logits.masked_fill(hidden, -torch.inf).flatten(2)
    lse = torch.logsumexp(logits, dim=-1)
    weights = torch.exp(logits - lse.masked_fill(lse == -torch.inf, 0.0)[..., None])
    # Hidden rows may hold anything, also NaN, which a weight of zero would not silence.
    values = values.masked_fill(hidden[:, None, :, None], 0.0).transpose(0, 1).flatten(1, 2)
    out = torch.einsum("hgr,hrd->hgd", weights, values)
    return out.flatten(0, 1), lse.flatten()
