"""Logits from the definition, in fp64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moorage.kernels.half import Storage, from_storage


def score_blocks(
    anchors_layer: Storage,
    pages: NDArray[np.int32],
    queries: NDArray[np.float32],
    quest: bool,
    out: NDArray[np.float32],
    *,
    add: bool = False,
) -> None:
    """See cpu.py."""
    rows, heads, _ = queries.shape
    group = heads // anchors_layer.shape[1]
    for r in range(rows):
        for head in range(heads):
            query = queries[r, head].astype(np.float64)
            for i, page in enumerate(pages):
                vectors = from_storage(anchors_layer[page, head // group]).astype(np.float64)
                bounds = (
                    zip(vectors[::2], vectors[1::2], strict=True)
                    if quest
                    else zip(vectors, vectors, strict=True)
                )
                logits = [np.maximum(query * high, query * low).sum() for high, low in bounds]
                out[r, head, i] = sum(logits) if add else max(logits)
