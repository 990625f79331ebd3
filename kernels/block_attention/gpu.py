"""`attend_blocks` in plain torch operations, for any device."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]


def attend_blocks(
    query: torch.Tensor,
    slots_kv: torch.Tensor,
    *,
    slot: Int32,
    begin: Int32,
    end: Int32,
    angle_cos: Float32,
    angle_sin: Float32,
    rotate_keys: NDArray[np.uint8],
    offset_cos: Float32,
    offset_sin: Float32,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(out f32 [Hq, D], lse f32 [Hq]) of query [Hq, D] over rows of slots_kv [S, 2, Hkv, B, D]; see `reference.py`."""
    device = query.device
    num_heads, dim = query.shape
    if not len(slot):
        return torch.zeros(num_heads, dim, device=device), torch.full((num_heads,), -torch.inf, device=device)

    def tensor(array: NDArray) -> torch.Tensor:  # type: ignore[type-arg]
        return torch.from_numpy(array).to(device)

    blocks = slots_kv[tensor(slot).long()].float()
    keys, values = blocks[:, 0], blocks[:, 1]
    turned = _rotate(keys, tensor(offset_cos), tensor(offset_sin))
    keys = torch.where(tensor(rotate_keys).bool()[:, None, None, None], turned, keys)
    cos, sin = (tensor(part)[:, None] for part in (angle_cos, angle_sin))
    queries = _rotate(query.float().expand(len(slot), -1, -1), cos, sin)
    queries = queries.view(len(slot), keys.shape[1], -1, dim)
    logits = torch.einsum("nhgd,nhbd->nhgb", queries, keys) * scale
    rows = torch.arange(keys.shape[2], device=device)
    hidden = (rows < tensor(begin)[:, None]) | (rows >= tensor(end)[:, None])
    logits.masked_fill_(hidden[:, None, None], -torch.inf)
    flat = logits.permute(1, 2, 0, 3).flatten(2)
    lse = torch.logsumexp(flat, dim=-1)
    weights = torch.exp(flat - lse.masked_fill(lse == -torch.inf, 0.0)[..., None])
    out = weights @ values.transpose(0, 1).flatten(1, 2)
    return out.reshape(num_heads, dim), lse.reshape(num_heads)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = cos.shape[-1]
    first, second = x[..., :half], x[..., half : 2 * half]
    turned = (first * cos - second * sin, second * cos + first * sin)
    return torch.cat((*turned, x[..., 2 * half :]), dim=-1)
