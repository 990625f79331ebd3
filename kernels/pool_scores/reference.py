"""Pooling from the definition, in fp64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def pool_scores(
    scores: NDArray[np.float32],
    num_kv_heads: int,
    shared: bool,
    scale: float,
    limits: NDArray[np.int32],
    out: NDArray[np.float32],
    pooling: str = "softmax",
    lse: NDArray[np.float32] | None = None,
) -> None:
    """See cpu.py."""
    rows, heads, _ = scores.shape
    selections = 1 if shared else num_kv_heads
    group = heads // selections
    if lse is None:
        lse = np.empty((rows, heads), np.float32)
        score_lse(scores, scale, limits, lse)
    for r in range(rows):
        logits = scale * scores[r, :, : limits[r]].astype(np.float64)
        for selection in range(selections):
            selected = slice(selection * group, (selection + 1) * group)
            part = logits[selected]
            if pooling == "softmax":
                part = np.exp(part - lse[r, selected, None])
            out[r, selection, : limits[r]] = part.max(axis=0) if pooling == "max" else part.mean(axis=0)
            out[r, selection, limits[r] :] = -np.inf


def score_lse(
    scores: NDArray[np.float32], scale: float, limits: NDArray[np.int32], out: NDArray[np.float32]
) -> None:
    """See cpu.py."""
    out[:] = -np.inf
    for r, limit in enumerate(limits):
        if limit:
            logits = scale * scores[r, :, :limit].astype(np.float64)
            peak = logits.max(axis=1, keepdims=True)
            out[r] = peak[:, 0] + np.log(np.exp(logits - peak).sum(axis=1))
