"""Scores of blocks whose anchors are tensors, on any device. Apart from the package, which KV actors import: torch
would cost each of them more than a hundred megabytes."""

from __future__ import annotations

import torch

from moorage.kernels.block_score import gpu
from moorage.kernels.triton_support import has_triton


def score_tensors(
    anchors_layer: torch.Tensor, pages: torch.Tensor, queries: torch.Tensor, quest: bool, *, add: bool = False
) -> torch.Tensor:
    """[R, Hq, n] f32 on the device of its arguments: `score_blocks` for anchors that lie there.

    anchors [P, Hkv, A, D] contiguous, pages int32 [n], queries f32 [R, Hq, D].
    """
    if queries.device.type == "cuda" and has_triton():
        from moorage.kernels.block_score import triton

        return triton.score_blocks(anchors_layer, pages, queries, quest, add=add)
    return gpu.score_blocks(anchors_layer, pages, queries, quest, add=add)
