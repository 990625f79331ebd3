"""Anchors from the definition, in fp64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moorage.kernels.half import Storage, from_storage, to_storage

Float64 = NDArray[np.float64]


def build_anchors(
    kv_layer: Storage,
    anchors_layer: Storage,
    pages: NDArray[np.int32],
    kind: str,
    *,
    importance: NDArray[np.float32] | None = None,
    num_top: int = 0,
    rotation: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None,
) -> None:
    """See cpu.py."""
    is_half = kv_layer.dtype == np.uint16
    count = anchors_layer.shape[2] // (2 if kind == "bounds" else 1)
    for place, page in enumerate(pages):
        for head in range(kv_layer.shape[2]):
            keys = from_storage(kv_layer[page, 0, head]).astype(np.float64)
            if rotation is not None:
                keys = _rotated(keys, rotation[0][place], rotation[1][place])
            if kind == "important":
                assert importance is not None
                vectors = _important(keys, importance[place, head], num_top, count)
            else:
                vectors = _of_parts(keys, kind, count)
            for i, vector in enumerate(vectors):
                anchors_layer[page, head, i] = to_storage(vector.astype(np.float32), is_half)


def _of_parts(keys: Float64, kind: str, count: int) -> list[Float64]:
    size = len(keys)
    vectors: list[Float64] = []
    for i in range(count):
        part = keys[i * size // count : (i + 1) * size // count]
        if kind == "mean":
            vectors.append(part.mean(axis=0))
        elif kind == "fixed":
            vectors.append(part[0])
        else:
            vectors += [part.max(axis=0)] if kind == "max" else [part.max(axis=0), part.min(axis=0)]
    return vectors


def _important(keys: Float64, importance: NDArray[np.float32], num_top: int, count: int) -> list[Float64]:
    ranked = np.argsort(-importance, kind="stable")[:num_top]
    return [
        keys[ranked[i * num_top // count : (i + 1) * num_top // count]].mean(axis=0) for i in range(count)
    ]


def _rotated(keys: Float64, cos: NDArray[np.float32], sin: NDArray[np.float32]) -> Float64:
    half = cos.shape[1]
    low, high = keys[:, :half], keys[:, half : 2 * half]
    return np.concatenate((low * cos - high * sin, high * cos + low * sin, keys[:, 2 * half :]), axis=1)
