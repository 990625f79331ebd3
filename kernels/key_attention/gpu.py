"""Single keys in plain torch operations, for any device; no wait for the device anywhere."""

from __future__ import annotations

import torch

from moorage.kernels.softcap import capped


def key_logits(
    queries: torch.Tensor,
    keys: torch.Tensor,
    *,
    variant: torch.Tensor,
    turns: torch.Tensor | None,
    scale: float,
    softcap: float = 0.0,
) -> torch.Tensor:
    """Scaled logits [Hkv, G, m] in fp32 of keys [Hkv, m, D] of storage type.

    `queries` [V, Hq, D] in fp32 are the query as rotated variants; key i of head h meets number variant[h, i].
    `turns` complex64 [Hkv, m, rd / 2] rotate the keys, channel i with channel i + rd / 2; None takes them as stored.
    """
    num_heads, dim = keys.shape[0], keys.shape[-1]
    rows = keys.float() if turns is None else _rotated(keys.float(), turns)
    groups = queries.view(len(queries), num_heads, -1, dim)
    logits = torch.einsum("vhgd,hmd->vhgm", groups * scale, rows)
    if len(logits) == 1:
        return capped(logits[0], softcap)
    met = variant.long()[None, :, None].expand(1, -1, logits.shape[2], -1)
    return capped(logits.gather(0, met)[0], softcap)


def attend_keys(
    logits: torch.Tensor, is_there: torch.Tensor, values: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(out [Hq, D], lse [Hq]) in fp32 over keys with logits [Hkv, G, n] and values [Hkv, n, D] of storage type.

    Only keys that are there, bool [Hkv, n], are attended; what stands for another may be anything but NaN.
    """
    seen = logits.masked_fill(~is_there[:, None], -torch.inf)
    lse = torch.logsumexp(seen, dim=-1)
    weights = torch.exp(seen - lse.masked_fill(lse == -torch.inf, 0.0)[..., None])
    out = torch.einsum("hgn,hnd->hgd", weights, values.float())
    return out.flatten(0, 1), lse.flatten()


def _rotated(keys: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    half = turns.shape[-1]
    low, high, rest = keys[..., :half], keys[..., half : 2 * half], keys[..., 2 * half :]
    cos, sin = turns.real, turns.imag
    return torch.cat((low * cos - high * sin, high * cos + low * sin, rest), dim=-1)
