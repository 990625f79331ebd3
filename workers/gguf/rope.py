"""The scaling of the rotary embedding in a GGUF file, as config.json would have it."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Any

from moorage.workers.errors import InvalidModel
from moorage.workers.gguf.decimals import as_decimal
from moorage.workers.gguf.model import GgufModel

_FACTORS, _SHORT, _LONG = "rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"
_MOST_FACTORS = 4096
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""What all published models with Llama 3's scaling have; only `factor` differs."""


def rope_scaling(model: GgufModel, keys: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_scaling` and what belongs to it; empty where nothing is scaled. Raises InvalidModel."""
    kind = keys.get("rope.scaling.type", "linear" if "rope.scale_linear" in keys else "none")
    factor = keys.get("rope.scaling.factor", keys.get("rope.scale_linear", 1.0))
    original = keys.get("rope.scaling.original_context_length")
    if _LONG in model.tensors or _SHORT in model.tensors:
        return _longrope(model, original)
    if kind == "none" or (kind == "linear" and factor in (0, 1)):
        return _by_factors(model, config)
    if kind == "linear":
        return {"rope_scaling": {"rope_type": "linear", "factor": factor}}
    if kind == "yarn":
        return {"rope_scaling": _yarn(model, keys, factor, original)}
    raise InvalidModel(
        f"{model.file}: rope.scaling.type {str(kind)[:40]!r} is not supported; use none, linear or yarn"
    )


def _yarn(model: GgufModel, keys: Mapping[str, Any], factor: Any, original: Any) -> dict[str, Any]:
    for name in ("attn_factor", "yarn_attn_factor", "yarn_ext_factor"):
        if keys.get(f"rope.scaling.{name}", 1.0) != 1.0:
            raise InvalidModel(
                f"{model.file}: rope.scaling.{name} other than 1 is not supported; use another model"
            )
    if keys.get("rope.scaling.yarn_log_multiplier"):
        raise InvalidModel(
            f"{model.file}: rope.scaling.yarn_log_multiplier is not supported; use another model"
        )
    scaling = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    for name in ("beta_fast", "beta_slow"):
        if f"rope.scaling.yarn_{name}" in keys:
            scaling[name] = keys[f"rope.scaling.yarn_{name}"]
    return scaling


def _longrope(model: GgufModel, original: Any) -> dict[str, Any]:
    """Phi-3's. llama.cpp takes the short factors for a context up to the original length, the long ones beyond it."""
    short, long = (_floats(model, name) for name in (_SHORT, _LONG))
    scaling = {"rope_type": "longrope", "short_factor": short, "long_factor": long}
    return {"rope_scaling": scaling, "original_max_position_embeddings": original}


def _by_factors(model: GgufModel, config: Mapping[str, Any]) -> dict[str, Any]:
    """Divisors of single frequencies, which Llama 3.1 and later ones have: by their formula, else as they are."""
    if _FACTORS not in model.tensors:
        return {}
    factors = _floats(model, _FACTORS)
    if max(factors) == min(factors) == 1:
        return {}
    theta, factor = config.get("rope_theta", 10000.0), max(factors)
    expected = _llama3_factors(float(theta), factor, len(factors))
    if all(math.isclose(ours, theirs, rel_tol=1e-4) for ours, theirs in zip(expected, factors, strict=True)):
        return {"rope_scaling": {"rope_type": "llama3", "factor": round(factor, 4), **_LLAMA3}}
    listed = {"short_factor": factors, "long_factor": factors, "attention_factor": 1.0}
    return {"rope_scaling": {"rope_type": "longrope", "factor": 1.0, **listed}}


def _llama3_factors(theta: float, factor: float, number: int) -> list[float]:
    low, high = _LLAMA3["low_freq_factor"], _LLAMA3["high_freq_factor"]
    original = _LLAMA3["original_max_position_embeddings"]
    factors = []
    for i in range(number):
        waves = original * theta ** (-i / number) / (2 * math.pi)
        smooth = min(max((waves - low) / (high - low), 0.0), 1.0)
        factors.append(1 / ((1 - smooth) / factor + smooth))
    return factors


def _floats(model: GgufModel, name: str) -> list[float]:
    """The numbers of a small tensor in single precision. Raises InvalidModel."""
    header = model.tensors.get(name)
    if header is None or header.dtype != "F32" or len(header.shape) != 1 or header.shape[0] > _MOST_FACTORS:
        raise InvalidModel(
            f"{model.file}: tensor {name} is missing, or no short list of F32; download it again"
        )
    with header.file.open("rb") as stream:
        stream.seek(header.begin)
        values = struct.unpack(f"<{header.shape[0]}f", stream.read(header.num_bytes))
    if not all(math.isfinite(value) and value > 0 for value in values):
        raise InvalidModel(
            f"{model.file}: tensor {name} holds numbers that are not positive; download it again"
        )
    return [as_decimal(value) for value in values]
