"""Quantizers that KVQuant's own release has made, as this project's.

Its file is a pickle of one number of bits: for `model.layers.N.self_attn.k_proj` and `…v_proj` a tuple of the
upper and lower threshold of each channel, a list with the centroids, and, with Q-Norm, a scale and an offset of
the centroids.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moorage.runtime.calibrate.array_pickle import Array, read_arrays
from moorage.workers.errors import InvalidRequest
from moorage.workers.kv.formats.quantizer import Floats, LayerQuantizer, Quantizer
from moorage.workers.spec import ModelSpec

_NAME = re.compile(r"model\.layers\.(\d+)\.self_attn\.(k|v)_proj")
FAMILIES = ("llama", "mistral")
"""Whose keys KVQuant has quantised: the outputs of k_proj, as the stores hold them."""
_BITS = {4: 2, 8: 3, 16: 4}
"""Centroids -> bits."""


def import_quantizer(file: Path, spec: ModelSpec) -> Quantizer:
    """The quantizer in a pickle of KVQuant, for the model that `spec` describes. Raises InvalidRequest."""
    if spec.family not in FAMILIES:
        raise _unusable(
            file, f"KVQuant quantises {' and '.join(FAMILIES)} alone, and the model is {spec.family}"
        )
    found = read_arrays(file)
    if not isinstance(found, dict):
        raise _unusable(file, "it has no dictionary of layers")
    entries = {m.groups(): found[name] for name in found if (m := _NAME.fullmatch(str(name)))}
    layers = []
    for index in spec.stored_layers:
        pair = [entries.get((str(index), part)) for part in ("k", "v")]
        try:
            layers.append(_layer(pair[0], pair[1], (spec.num_kv_heads, spec.head_dim)))
        except (LookupError, TypeError, ValueError) as error:
            raise _unusable(file, f"layer {index}: {error}") from None
    beyond = [int(number) for number, _ in entries if int(number) >= spec.num_layers]
    if beyond:
        raise _unusable(file, f"it has layer {min(beyond)}, and the model {spec.num_layers} layers")
    sizes = {len(layer.key_levels) for layer in layers}
    bits = _BITS.get(min(sizes))
    if bits is None or len(sizes) != 1:
        raise _unusable(file, f"it has {', '.join(map(str, sorted(sizes)))} centroids; 4, 8 or 16 are read")
    for index, layer in enumerate(layers):
        if fault := layer.fault(bits):
            raise _unusable(file, f"layer {index}: {fault}")
    return Quantizer(bits, tuple(layers))


def _layer(key: Any, value: Any, shape: tuple[int, int]) -> LayerQuantizer:
    """One layer. Raises ValueError, TypeError or LookupError that say what is missing."""
    for name, entry in (("k_proj", key), ("v_proj", value)):
        if not isinstance(entry, tuple | list) or len(entry) < 3:
            raise ValueError(f"{name} has no thresholds and centroids")
    high, low = (_floats(x).reshape(-1) for x in key[:2])
    if len(high) != shape[0] * shape[1] or len(low) != len(high):
        raise ValueError(f"k_proj has {len(high)} channels, the model {shape[0]} KV heads of {shape[1]}")
    high, low = high.reshape(shape), low.reshape(shape)
    return LayerQuantizer(
        key_levels=_levels(key[2:]),
        value_levels=_levels(value[2:]),
        key_scale=((high - low) / 2).astype(np.float32),
        key_zero=((high + low) / 2).astype(np.float32),
        key_low=low,
        key_high=high,
    )


def _levels(rest: Sequence[Any]) -> Floats:
    """The centroids in order, as Q-Norm moves them where it is there."""
    levels = np.sort(_floats(rest[0][0]).reshape(-1))
    norm = [x for part in rest[1:] for x in (part if isinstance(part, tuple | list) else [part])]
    if len(norm) >= 2:
        scale, offset = (float(_floats(x).reshape(-1)[0]) for x in norm[:2])
        levels = levels * scale + offset
    return np.clip(levels, -1, 1).astype(np.float32)


def _floats(value: Any) -> Floats:
    if isinstance(value, Array) and value.values is not None:
        return value.values.astype(np.float32)
    if isinstance(value, int | float):
        return np.float32(value).reshape(1)
    raise TypeError("an array is missing")


def _unusable(file: Path, reason: str) -> InvalidRequest:
    return InvalidRequest(f"{file}: no quantizer for this model ({reason}); check the file and --model")
