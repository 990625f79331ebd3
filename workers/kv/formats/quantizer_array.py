"""A quantizer as one array of numbers, as it lies in the shared memory of a store."""

from __future__ import annotations

from dataclasses import fields
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from moorage.workers.kv.formats.quantizer import LayerQuantizer, Quantizer

Floats = NDArray[np.float32]


def to_array(quantizer: Quantizer) -> Floats:
    """All numbers, layer by layer, in the order of the fields of LayerQuantizer."""
    parts = [values.reshape(-1) for layer in quantizer.layers for _, values in layer.arrays()]
    return np.concatenate(parts).astype(np.float32)


def from_array(numbers: Floats, bits: int, num_layers: int, num_kv_heads: int, head_dim: int) -> Quantizer:
    """The inverse of `to_array`; copies."""
    channels = num_kv_heads, head_dim
    shapes = {"key_levels": (2**bits,), "value_levels": (2**bits,), "key_feedback": (*channels, head_dim)}
    layers = []
    for row in numbers.reshape(num_layers, -1):
        parts, begin = {}, 0
        for field in fields(LayerQuantizer):
            shape = shapes.get(field.name, channels)
            end = begin + int(np.prod(shape))
            parts[field.name], begin = row[begin:end].reshape(shape), end
        layers.append(LayerQuantizer(**parts))
    return Quantizer(bits, tuple(layers))


def digest_of(quantizer: Quantizer) -> int:
    """A number that tells quantizers apart: positive, below 2 ** 63."""
    found = blake2b(to_array(quantizer).tobytes(), digest_size=8, person=str(quantizer.bits).encode())
    return int.from_bytes(found.digest(), "little") % (2**63 - 1) + 1
