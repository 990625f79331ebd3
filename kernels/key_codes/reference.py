"""Codes of keys from the definition, in fp64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moorage.kernels.hadamard import hadamard_matrix
from moorage.kernels.half import Storage, from_storage, to_storage

Float64 = NDArray[np.float64]


def encode_keys(
    kv_layer: Storage,
    anchors_layer: Storage,
    codes_layer: NDArray[np.uint8],
    pages: NDArray[np.int32],
    rotation: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None,
) -> None:
    """See cpu.py."""
    is_half = kv_layer.dtype == np.uint16
    by_head = codes_layer.reshape(len(codes_layer), kv_layer.shape[2], -1)
    for place, page in enumerate(pages):
        turns = None if rotation is None else (rotation[0][place], rotation[1][place])
        for head in range(kv_layer.shape[2]):
            keys = rotated(from_storage(kv_layer[page, 0, head]).astype(np.float64), turns)
            anchors_layer[page, head, 0] = to_storage(keys.mean(axis=0).astype(np.float32), is_half)
            channels = transformed(keys, from_storage(anchors_layer[page, head, 0]))
            planes = np.packbits(channels >= 0, axis=1, bitorder="little").T
            scales = np.minimum(np.abs(channels).mean(axis=1), 65504).astype(np.float16)
            by_head[page, head] = np.concatenate((planes.reshape(-1), scales.view(np.uint8)))


def rotated(keys: Float64, rotation: tuple[NDArray[np.float32], NDArray[np.float32]] | None) -> Float64:
    """Keys [B, D], channel i turned with channel i + rd / 2 by (cos, sin) of [B, rd / 2]."""
    if rotation is None:
        return keys
    cos, sin = rotation
    half = cos.shape[1]
    low, high = keys[:, :half], keys[:, half : 2 * half]
    return np.concatenate((low * cos - high * sin, high * cos + low * sin, keys[:, 2 * half :]), axis=1)


def transformed(keys: Float64, mean: NDArray[np.float32]) -> Float64:
    """The transform of keys [B, D] less their mean [D]."""
    return (keys - mean.astype(np.float64)) @ hadamard_matrix(keys.shape[1])
