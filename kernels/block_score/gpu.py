"""Scores of block anchors in plain torch operations, for any device."""

from __future__ import annotations

import torch


def score_blocks(
    anchors_layer: torch.Tensor, pages: torch.Tensor, queries: torch.Tensor, quest: bool, *, add: bool = False
) -> torch.Tensor:
    """See `tensors.score_tensors`."""
    rows, num_heads, dim = queries.shape
    anchors = anchors_layer[pages.long()].float()
    groups = queries.view(rows, anchors.shape[1], -1, dim)
    if quest:
        logits = torch.einsum("rhgd,nhad->rhgna", groups.clamp(min=0), anchors[:, :, ::2])
        logits += torch.einsum("rhgd,nhad->rhgna", groups.clamp(max=0), anchors[:, :, 1::2])
    else:
        logits = torch.einsum("rhgd,nhad->rhgna", groups, anchors)
    joined = logits.sum(dim=-1) if add else logits.amax(dim=-1)
    return joined.reshape(rows, num_heads, len(pages))
