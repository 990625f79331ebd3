"""`attend_dense` in plain torch operations, for any device."""

from __future__ import annotations

import torch

Band = tuple[int, int]

LOGIT_BYTES = 256 * 2**20
"""Most memory of one tile's logits."""


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
    out = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
    lse = torch.full(q.shape[:2], -torch.inf, dtype=torch.float32, device=q.device)
    if num_keys == 0 or num_rows == 0:
        return out, lse
    groups = q.view(num_kv_heads, -1, num_rows, dim) if q.is_contiguous() else q.reshape(num_kv_heads, -1, num_rows, dim)
    tile = max(1, LOGIT_BYTES // (num_heads * num_keys * 4))
    positions = torch.arange(k_start, k_start + num_keys, device=q.device)
    for a in range(0, num_rows, tile):
        rows = groups[:, :, a : a + tile]
        logits = torch.einsum("hgtd,hnd->hgtn", rows, k).float() * scale
        if band is not None:
            distance = torch.arange(q_start + a, q_start + a + rows.shape[2], device=q.device)[:, None] - positions
            logits.masked_fill_((distance < band[0]) | (distance >= band[1]), -torch.inf)
        part_lse = torch.logsumexp(logits, dim=-1)
        weights = torch.exp(logits - part_lse.masked_fill(part_lse == -torch.inf, 0.0)[..., None])
        part = torch.einsum("hgtn,hnd->hgtd", weights.to(v.dtype), v).float()
        out[:, a : a + tile] = part.reshape(num_heads, -1, dim)
        lse[:, a : a + tile] = part_lse.reshape(num_heads, -1)
    return out, lse
