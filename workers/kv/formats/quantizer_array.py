"""A quantizer as one array of numbers, as it lies in the shared memory of a store."""

from __future__ import annotations

from dataclasses import fields
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from moorage.workers.kv.formats.base import NUM_HEAD_NUMBERS
from moorage.workers.kv.formats.quantizer import MOST_LEVELS, LayerQuantizer, Quantizer

Floats = NDArray[np.float32]


_LEVELS = ("key_levels", "value_levels")


def to_array(quantizer: Quantizer) -> Floats:
    """All numbers by layer: bits, levels padded to MOST_LEVELS, and the other fields of LayerQuantizer in order."""
    parts = []
    for layer in quantizer.layers:
        head = np.zeros(NUM_HEAD_NUMBERS, np.float32)
        head[0] = layer.bits
        for row, name in zip(head[1:].reshape(len(_LEVELS), MOST_LEVELS), _LEVELS, strict=True):
            levels = getattr(layer, name)
            row[: len(levels)] = levels
        parts += [head, *(values.reshape(-1) for name, values in layer.arrays() if name not in _LEVELS)]
    return np.concatenate(parts)


def from_array(numbers: Floats, bits: int, num_layers: int, num_kv_heads: int, head_dim: int) -> Quantizer:
    """The inverse of `to_array`; copies."""
    channels = num_kv_heads, head_dim
    layers = []
    for row in numbers.reshape(num_layers, -1):
        levels, begin = row[1:NUM_HEAD_NUMBERS].reshape(len(_LEVELS), MOST_LEVELS), NUM_HEAD_NUMBERS
        parts = dict(zip(_LEVELS, levels[:, : 2 ** int(row[0])], strict=True))
        for field in fields(LayerQuantizer):
            if field.name in _LEVELS:
                continue
            shape = (*channels, head_dim) if field.name == "key_feedback" else channels
            end = begin + int(np.prod(shape))
            parts[field.name], begin = row[begin:end].reshape(shape), end
        layers.append(LayerQuantizer(**parts))
    return Quantizer(bits, tuple(layers))


def digest_of(quantizer: Quantizer) -> int:
    """A number that tells quantizers apart: positive, below 2 ** 63."""
    found = blake2b(to_array(quantizer).tobytes(), digest_size=8, person=str(quantizer.bits).encode())
    return int.from_bytes(found.digest(), "little") % (2**63 - 1) + 1
