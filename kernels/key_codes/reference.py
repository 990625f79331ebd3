"""Codes of keys from the definition, in fp64."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moorage.kernels.hadamard import hadamard_matrix
from moorage.kernels.half import Storage, from_storage, to_storage
from moorage.kernels.key_codes.sizes import WORD_BITS, code_words

Float64 = NDArray[np.float64]


class KeyCodes(NamedTuple):
    """The codes of blocks."""

    words: NDArray[np.uint64]
    """[P, Hkv, W, B]."""
    scales: NDArray[np.float16]
    """[P, Hkv, B]."""


def encode_keys(
    kv_layer: Storage,
    anchors_layer: Storage,
    codes_layer: NDArray[np.uint8],
    pages: NDArray[np.int32],
    rotation: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None,
) -> None:
    """See cpu.py."""
    is_half = kv_layer.dtype == np.uint16
    found = codes_of(codes_layer, kv_layer.shape[2], kv_layer.shape[4])
    for place, page in enumerate(pages):
        turns = None if rotation is None else (rotation[0][place], rotation[1][place])
        for head in range(kv_layer.shape[2]):
            keys = rotated(from_storage(kv_layer[page, 0, head]).astype(np.float64), turns)
            anchors_layer[page, head, 0] = to_storage(keys.mean(axis=0).astype(np.float32), is_half)
            centred = transformed(keys, from_storage(anchors_layer[page, head, 0]))
            found.words[page, head] = packed(centred >= 0)
            found.scales[page, head] = np.abs(centred).mean(axis=1)


def codes_of(codes_layer: NDArray[np.uint8], num_kv_heads: int, dim: int) -> KeyCodes:
    """The codes in codes_layer [P, bytes], which lie where these are views of."""
    words, by_head = code_words(dim), codes_layer.reshape(len(codes_layer), num_kv_heads, -1)
    size = by_head.shape[2] // (words * 8 + 2)
    split = words * 8 * size
    return KeyCodes(
        by_head[:, :, :split].view(np.uint64).reshape(*by_head.shape[:2], words, size),
        by_head[:, :, split:].view(np.float16),
    )


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


def packed(signs: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Words [W, B] of signs [B, D]."""
    size, dim = signs.shape
    padded = np.zeros((size, code_words(dim) * WORD_BITS), np.bool_)
    padded[:, :dim] = signs
    return np.packbits(padded, axis=1, bitorder="little").view(np.uint64).T


def unpacked(words: NDArray[np.uint64], dim: int) -> NDArray[np.float64]:
    """2 bit - 1 for each channel, [..., B, D] of words [..., W, B]."""
    by_key = np.ascontiguousarray(np.moveaxis(words, -2, -1)).view(np.uint8)
    return 2.0 * np.unpackbits(by_key, axis=-1, bitorder="little")[..., :dim] - 1


def estimated_keys(codes: KeyCodes, anchors: NDArray[np.float32]) -> Float64:
    """What codes and anchors [P, Hkv, 1, D] say of the keys: [P, Hkv, B, D]."""
    dim = anchors.shape[-1]
    signs = unpacked(codes.words, dim) @ hadamard_matrix(dim)
    return np.asarray(anchors + codes.scales[..., None].astype(np.float64) * signs, np.float64)
