"""A selection by the definition, in fp64 and with a full sort."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moorage.kernels.block_score import reference as block_score
from moorage.kernels.half import Storage
from moorage.kernels.top_blocks import reference as top_blocks


def select_blocks(
    anchors_layer: Storage,
    pages: NDArray[np.int32],
    queries: NDArray[np.float32],
    limits: NDArray[np.int32],
    *,
    quest: bool,
    scale: float,
    ids: NDArray[np.int32],
    scores: NDArray[np.float32],
) -> None:
    """See cpu.py."""
    rows, selections, k = ids.shape
    pooled = np.zeros((rows, selections, len(pages)), np.float32)
    _score_pooled(anchors_layer, pages, queries, quest, selections == 1, scale, pooled)
    flat = pooled.reshape(rows * selections, len(pages))
    top_blocks.top_blocks(
        flat, np.repeat(limits, selections), k, ids.reshape(len(flat), k), scores.reshape(len(flat), k)
    )


def _score_pooled(
    anchors_layer: Storage,
    pages: NDArray[np.int32],
    queries: NDArray[np.float32],
    quest: bool,
    shared: bool,
    scale: float,
    out: NDArray[np.float32],
) -> None:
    """The mean of scale * logit over all heads (`shared`), or over those of each KV head, into out [R, S, n]."""
    logits = np.zeros((*queries.shape[:2], len(pages)), np.float32)
    block_score.score_blocks(anchors_layer, pages, queries, quest, logits)
    pooled_heads = queries.shape[1] // (1 if shared else anchors_layer.shape[1])
    out[:] = scale * logits.astype(np.float64).reshape(*out.shape[:2], pooled_heads, len(pages)).mean(axis=2)
