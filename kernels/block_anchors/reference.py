"""Anchors from the definition, in fp64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moorage.kernels.half import Storage, from_storage, to_storage


def build_anchors(kv_layer: Storage, anchors_layer: Storage, pages: NDArray[np.int32], quest: bool) -> None:
    """See cpu.py."""
    _, _, num_heads, block_size, _ = kv_layer.shape
    is_half = kv_layer.dtype == np.uint16
    count = anchors_layer.shape[2] // (2 if quest else 1)
    for page in pages:
        for head in range(num_heads):
            keys = from_storage(kv_layer[page, 0, head]).astype(np.float64)
            for i in range(count):
                part = keys[i * block_size // count : (i + 1) * block_size // count]
                vectors = [part.max(axis=0), part.min(axis=0)] if quest else [part.mean(axis=0)]
                for j, vector in enumerate(vectors):
                    anchors_layer[page, head, i * len(vectors) + j] = to_storage(
                        vector.astype(np.float32), is_half
                    )
