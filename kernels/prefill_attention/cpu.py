"""CPU form of `attend_dense`, on torch's own flash attention."""

from __future__ import annotations

import torch

Band = tuple[int, int]

MASK_BYTES = 64 * 2**20
"""Most memory of one tile's mask."""

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def attend_dense(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    band: Band | None = None,
    q_start: int = 0,
    k_start: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(out f32 [Hq, T, D], lse f32 [Hq, T]) of q [Hq, T, D] over k, v [Hkv, N, D]; see `reference.py`."""
    num_heads, num_rows, dim = q.shape
    num_kv_heads, num_keys, _ = k.shape
    if num_keys == 0 or num_rows == 0:
        return q.new_zeros(q.shape, dtype=torch.float32), q.new_full(q.shape[:2], -torch.inf, dtype=torch.float32)
    if band is None:
        # Without a mask the queries of a group are just more rows, and no key is repeated.
        rows = q.reshape(num_kv_heads, -1, dim)
        out, lse = _flash(rows[None], k[None], v[None], scale=scale)
        return out[0].reshape(q.shape).float(), lse[0].reshape(q.shape[:2]).float()
    group = num_heads // num_kv_heads
    keys, values = (t.repeat_interleave(group, dim=0) for t in (k, v))
    tile = max(1, MASK_BYTES // (num_keys * 4))
    parts = [
        _attend_tile(q[:, a : a + tile], keys, values, scale, band, q_start + a, k_start)
        for a in range(0, num_rows, tile)
    ]
    return torch.cat([out for out, _ in parts], dim=1), torch.cat([lse for _, lse in parts], dim=1)


def _attend_tile(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, band: Band, q_start: int, k_start: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """One tile of rows over the keys that any of them sees."""
    first = max(0, q_start - band[1] + 1 - k_start)
    end = min(k.shape[1], q_start + q.shape[1] - band[0] - k_start)
    if end <= first:
        return q.new_zeros(q.shape, dtype=torch.float32), q.new_full(q.shape[:2], -torch.inf, dtype=torch.float32)
    k, v, k_start = k[:, first:end], v[:, first:end], k_start + first
    distance = torch.arange(q_start, q_start + q.shape[1])[:, None] - torch.arange(k_start, k_start + k.shape[1])
    hidden = (distance < band[0]) | (distance >= band[1])
    mask = torch.zeros(hidden.shape, dtype=q.dtype).masked_fill_(hidden, -torch.inf)
    out, lse = _flash(q[None], k[None], v[None], attn_mask=mask, scale=scale)
    empty = hidden.all(dim=1)
    if empty.any():
        out[:, :, empty], lse[:, :, empty] = 0.0, -torch.inf
    return out[0].float(), lse[0].float()
