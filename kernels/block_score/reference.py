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


def score_keys(
    kv_layer: Storage, pages: NDArray[np.int32], queries: NDArray[np.float32], out: NDArray[np.float32]
) -> None:
    """See cpu.py."""
    keys: Storage = kv_layer[:, 0]
    score_blocks(keys, pages, queries, False, out)


def encode_anchors(
    anchors_layer: Storage,
    pages: NDArray[np.int32],
    low: NDArray[np.float32],
    step: NDArray[np.float32],
    codes_layer: NDArray[np.uint8],
) -> None:
    """See codes.py."""
    values = from_storage(anchors_layer[pages]).reshape(len(pages), -1).astype(np.float64)
    places = np.divide(values - low, step, out=np.zeros_like(values), where=step > 0)
    codes = np.clip(np.floor(places + 0.5), 0, 15).astype(np.uint8)
    codes_layer[pages] = codes[:, ::2] | codes[:, 1::2] << 4
