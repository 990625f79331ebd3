"""Codes of keys from the definition, in fp64."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moorage.kernels.hadamard import hadamard_matrix
from moorage.kernels.half import Storage, from_storage, to_storage
from moorage.kernels.key_codes.centres import LARGEST, ROUNDS
from moorage.kernels.key_codes.sizes import CENTRE_CHANNELS, CENTRES, num_planes

Float64 = NDArray[np.float64]


class KeyCodes(NamedTuple):
    """The parts of the codes of P blocks."""

    planes: NDArray[np.uint8]
    """[P, Hkv, C, B]"""
    scales: NDArray[np.float16]
    """[P, Hkv, B]"""
    mean_values: NDArray[np.float16]
    """[P, Hkv, D]"""


def encode_keys(
    kv_layer: Storage,
    anchors_layer: Storage,
    codes_layer: NDArray[np.uint8],
    pages: NDArray[np.int32],
    rotation: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None,
    centres_layer: NDArray[np.uint8] | None = None,
) -> None:
    """See cpu.py."""
    is_half = kv_layer.dtype == np.uint16
    found = codes_of(codes_layer, *kv_layer.shape[2:])
    for place, page in enumerate(pages):
        turns = None if rotation is None else (rotation[0][place], rotation[1][place])
        for head in range(kv_layer.shape[2]):
            keys, values = (from_storage(kv_layer[page, part, head]).astype(np.float64) for part in (0, 1))
            keys = rotated(keys, turns)
            anchors_layer[page, head, 0] = to_storage(keys.mean(axis=0).astype(np.float32), is_half)
            channels = transformed(keys, from_storage(anchors_layer[page, head, 0]))
            found.planes[page, head] = np.packbits(channels >= 0, axis=1, bitorder="little").T
            found.scales[page, head] = np.abs(channels).mean(axis=1).clip(max=65504)
            found.mean_values[page, head] = values.mean(axis=0).clip(-65504, 65504)
            if centres_layer is not None:
                mean = from_storage(anchors_layer[page, head, 0]).astype(np.float64)
                by_head = centres_layer[page].reshape(kv_layer.shape[2], -1)
                by_head[head] = stored_centres(*centres_of(keys, mean))


def codes_of(codes_layer: NDArray[np.uint8], num_kv_heads: int, block_size: int, dim: int) -> KeyCodes:
    """The parts of codes_layer [P, bytes], which lie where it does."""
    by_head = codes_layer.reshape(len(codes_layer), num_kv_heads, -1)
    split = num_planes(dim) * block_size
    halves = by_head[..., split:].view(np.float16)
    planes = by_head[..., :split].reshape(*by_head.shape[:2], -1, block_size)
    return KeyCodes(planes, halves[..., :block_size], halves[..., block_size:])


def centres_of(keys: Float64, mean: Float64) -> tuple[Float64, Float64]:
    """(centres [C, D], radii [C]) of keys [B, D]: k-means from the keys that are farthest from each other."""
    nearest, chosen = ((keys - mean) ** 2).sum(axis=1), []
    for m in range(CENTRES):
        chosen.append(keys[nearest.argmax()])
        distances = ((keys - chosen[-1]) ** 2).sum(axis=1)
        nearest = np.minimum(nearest, distances) if m else distances
    centres = np.array(chosen)
    for round in range(ROUNDS + 1):
        distances = ((keys[:, None] - centres) ** 2).sum(axis=2)
        own = distances.argmin(axis=1)
        if round < ROUNDS:
            for m in set(own):
                centres[m] = keys[own == m].mean(axis=0)
    radii = [np.sqrt(distances[own == m, m].max(initial=0)) for m in range(CENTRES)]
    return centres, np.array(radii)


def stored_centres(centres: Float64, radii: Float64) -> NDArray[np.uint8]:
    """The bytes of one KV head's centres."""
    count, dim = centres.shape
    turned = centres @ hadamard_matrix(dim)
    scales = (np.abs(turned).max(axis=1) / LARGEST).clip(max=65504).astype(np.float16)
    steps = 2 * scales.astype(np.float64)[:, None]
    codes = np.floor(turned / np.where(steps > 0, steps, np.inf) + LARGEST / 2 + 0.5).clip(0, LARGEST)
    padded = np.zeros((count, -(-dim // CENTRE_CHANNELS) * CENTRE_CHANNELS), np.uint8)
    padded[:, :dim] = codes
    # [C, 32s, 2, quads, 4] -> [32s, 2, quads, C, 4]
    halves = np.moveaxis(padded.reshape(count, -1, 2, 4, 4), 0, 3)
    packed = halves[:, 0] | halves[:, 1] << 4
    tail = np.concatenate((scales, radii.clip(max=65504).astype(np.float16)))
    return np.concatenate((packed.reshape(-1), tail.view(np.uint8)))


def centres_in(stored: NDArray[np.uint8], dim: int) -> tuple[Float64, Float64]:
    """(transformed centres [..., C, D], radii [..., C]) of the bytes of heads [..., n]."""
    split = stored.shape[-1] - 4 * CENTRES
    packed = stored[..., :split].reshape(*stored.shape[:-1], -1, 1, 4, CENTRES, 4)
    codes = np.concatenate((packed & 15, packed >> 4), axis=-4)
    codes = np.moveaxis(codes, -2, -5).reshape(*stored.shape[:-1], CENTRES, -1)[..., :dim]
    tail = np.ascontiguousarray(stored[..., split:]).view(np.float16).astype(np.float64)
    return (2.0 * codes - LARGEST) * tail[..., :CENTRES, None], tail[..., CENTRES:]


def signs_of(planes: NDArray[np.uint8], dim: int) -> Float64:
    """1 or -1 for each channel: [..., B, D] of planes [..., C, B]."""
    by_key = np.moveaxis(planes, -2, -1)
    bits = np.unpackbits(by_key, axis=-1, bitorder="little")[..., :dim]
    return np.asarray(2.0 * bits - 1, np.float64)


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
