"""Dense attention in plain torch operations, for any device."""

from __future__ import annotations

import torch

from moorage.kernels.softcap import capped

Band = tuple[int, int]
Partial = tuple[torch.Tensor, torch.Tensor]

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
    softcap: float = 0.0,
) -> Partial:
    """See the package."""
    num_heads, num_rows, dim = q.shape
    out = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
    lse = torch.full(q.shape[:2], -torch.inf, dtype=torch.float32, device=q.device)
    if not q.numel() or not k.numel():
        return out, lse
    groups = q.reshape(len(k), -1, num_rows, dim)
    keys = torch.arange(k_start, k_start + k.shape[1], device=q.device)
    tile = max(1, LOGIT_BYTES // (4 * num_heads * k.shape[1]))
    for a in range(0, num_rows, tile):
        rows = groups[:, :, a : a + tile]
        logits = capped(torch.einsum("hgtd,hnd->hgtn", rows.float(), k.float()) * scale, softcap)
        if band is not None:
            queries = torch.arange(q_start + a, q_start + a + rows.shape[2], device=q.device)
            distance = queries[:, None] - keys
            logits.masked_fill_((distance < band[0]) | (distance >= band[1]), -torch.inf)
        part_lse = torch.logsumexp(logits, dim=-1)
        weights = torch.exp(logits - part_lse.masked_fill(part_lse == -torch.inf, 0.0)[..., None])
        part = torch.einsum("hgtn,hnd->hgtd", weights, v.float())
        out[:, a : a + tile] = part.reshape(num_heads, -1, dim)
        lse[:, a : a + tile] = part_lse.reshape(num_heads, -1)
    return out, lse
