"""Dense attention on the CPU by torch's flash attention, which also returns the log-sum-exp."""

from __future__ import annotations

import torch

from moorage.kernels.prefill_attention import gpu

Band = tuple[int, int]
Partial = tuple[torch.Tensor, torch.Tensor]

MASK_BYTES = 64 * 2**20
"""Most memory of one tile's mask."""
TILE_ROWS = 512
"""Queries under one mask: few enough that keys outside the band are cut off, not masked."""

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def attend_dense(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    band: Band | None = None,
    q_start: int = 0,
    k_start: int = 0,
    softcap: float = 0.0,
) -> Partial:
    """See the package."""
    if softcap:  # torch's flash attention has none
        return gpu.attend_dense(q, k, v, scale, band, q_start, k_start, softcap)
    if band is None:
        return _attend_all(q, k, v, scale)
    tile = max(1, min(TILE_ROWS, MASK_BYTES // (4 * max(1, k.shape[1]))))
    parts = [
        _attend_tile(q[:, a : a + tile], k, v, scale, band, q_start + a, k_start)
        for a in range(0, max(1, q.shape[1]), tile)
    ]
    return torch.cat([out for out, _ in parts], dim=1), torch.cat([lse for _, lse in parts], dim=1)


def _nothing(q: torch.Tensor) -> Partial:
    return q.new_zeros(q.shape, dtype=torch.float32), q.new_full(q.shape[:2], -torch.inf, dtype=torch.float32)


def _attend_all(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> Partial:
    """Without a mask the queries of a group are just more rows of one head."""
    if not q.numel() or not k.numel():
        return _nothing(q)
    rows = q.reshape(len(k), -1, q.shape[2])
    out, lse = _flash(rows[None], k[None], v[None], scale=scale)
    return out[0].reshape(q.shape).float(), lse[0].reshape(q.shape[:2]).float()


def _attend_tile(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, band: Band, q_start: int, k_start: int
) -> Partial:
    """One tile of rows over the keys that any of them sees."""
    num_rows = q.shape[1]
    first = max(0, q_start - band[1] + 1 - k_start)
    end = min(k.shape[1], q_start + num_rows - band[0] - k_start)
    if end <= first or not num_rows:
        return _nothing(q)
    k, v, k_start = k[:, first:end], v[:, first:end], k_start + first
    num_keys = end - first
    if q_start - (k_start + num_keys - 1) >= band[0] and q_start + num_rows - 1 - k_start < band[1]:
        return _attend_all(q, k, v, scale)
    distance = torch.arange(q_start, q_start + num_rows)[:, None] - torch.arange(k_start, k_start + num_keys)
    hidden = (distance < band[0]) | (distance >= band[1])
    mask = torch.zeros(hidden.shape, dtype=q.dtype).masked_fill_(hidden, -torch.inf)
    # KV heads as the batch: every head of a group then reads the same keys through a stride of zero.
    groups = q.reshape(len(k), -1, num_rows, q.shape[2])
    keys, values = (t[:, None].expand(-1, groups.shape[1], -1, -1) for t in (k, v))
    out, lse = _flash(groups, keys, values, attn_mask=mask, scale=scale)
    out, lse = out.reshape(q.shape).float(), lse.reshape(q.shape[:2]).float()
    blind = hidden.all(dim=1)
    return out.masked_fill(blind[:, None], 0.0), lse.masked_fill(blind, -torch.inf)
