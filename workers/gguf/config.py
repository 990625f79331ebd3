"""The keys of a GGUF file as those of a config.json, so that each family is read by one piece of code."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from moorage.workers.errors import InvalidModel
from moorage.workers.gguf.architectures import ARCHITECTURES, COMMON, IGNORED, NEUTRAL, Architecture
from moorage.workers.gguf.decimals import as_decimal
from moorage.workers.gguf.model import GgufModel
from moorage.workers.gguf.names import EMBED, LM_HEAD
from moorage.workers.gguf.rope import rope_scaling
from moorage.workers.gguf.special import special_keys
from moorage.workers.hf_fields import Fields

_REQUIRED = (
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
)
_BOS_KEY = "tokenizer.ggml.bos_token_id"
_END_KEYS = tuple(f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))
_PLAIN = {"F32": "float32", "F16": "float16"}
_VARIANTS = {"llama": {"expert_count": "mixtral"}, "olmo2": {"attention.sliding_window": "olmo3"}}
"""Architecture of llama.cpp -> a key that is not 0 -> the entry of ARCHITECTURES that it makes of it."""


def architecture_of(model: GgufModel) -> Architecture:
    """How the file's architecture is computed. Raises InvalidModel for one that is not supported."""
    name = model.architecture
    for key, variant in _VARIANTS.get(name, {}).items():
        if model.values.get(f"{name}.{key}"):
            name = variant
    found = ARCHITECTURES.get(name)
    if found is None:
        raise InvalidModel(
            f"{model.file}: architecture {name[:40] or 'without a name'} is not supported; use a model of "
            f"{', '.join(ARCHITECTURES)}"
        )
    return found


def config_of(model: GgufModel) -> Fields:
    """What the config.json of this model would say. Raises InvalidModel for a key that can't be obeyed."""
    architecture, keys = architecture_of(model), _own_keys(model)
    names = {**COMMON, **architecture.keys}
    known = {*names, *IGNORED}
    for key, value in keys.items():
        if key not in known and value and NEUTRAL.get(key) != value:
            raise _wrong(
                model, key, "changes what the model computes and is not supported; use another model"
            )
    for key in _REQUIRED:
        if key not in keys:
            raise _wrong(model, key, "is missing; download the file again")
        _check_count(model, key, _single(model, key, keys[key]))
    if EMBED not in model.tensors:
        raise InvalidModel(f"{model.file}: tensor {EMBED} is missing; download the file again")
    given = {name: _single(model, key, keys[key]) for key, name in names.items() if key in keys}
    # llama.cpp's 0 stands for a key that a model has not.
    config = {name: value for name, value in given.items() if value != 0 or isinstance(value, bool)}
    config |= architecture.fixed
    config |= _flags(model, architecture) | _layer_types(model, keys)
    config |= {
        "architectures": [architecture.hf_class],
        "vocab_size": model.tensors[EMBED].shape[0],
        "tie_word_embeddings": LM_HEAD not in model.tensors,
        "dtype": _dtype(model),
        "bos_token_id": model.values.get(_BOS_KEY),
        "eos_token_id": [model.values[key] for key in _END_KEYS if key in model.values],
    }
    _add_heads(model, keys, config)
    config |= rope_scaling(model, keys, config)
    config |= special_keys(model.architecture, config)
    return Fields(config, str(model.file))


def _flags(model: GgufModel, architecture: Architecture) -> dict[str, bool]:
    """The flags that a tensor of the first layer stands for."""
    found = dict.fromkeys(architecture.flags.values(), False)
    for tensor, flag in architecture.flags.items():
        found[flag] |= f"blk.0.{tensor}" in model.tensors
    return found


def _layer_types(model: GgufModel, keys: dict[str, Any]) -> dict[str, Any]:
    """Which layers slide, where the file lists them; a number is the period, which the family knows."""
    slides = keys.get("attention.sliding_window_pattern")
    if not isinstance(slides, list):
        return {}
    if not all(isinstance(each, bool) for each in slides):
        raise _wrong(
            model,
            "attention.sliding_window_pattern",
            "must be true or false for each layer; download the file again",
        )
    return {"layer_types": ["sliding_attention" if each else "full_attention" for each in slides]}


def _own_keys(model: GgufModel) -> dict[str, Any]:
    """The architecture's keys, without its name before them."""
    prefix = f"{model.architecture}."
    long = {key: [None] * length for key, length in model.lengths.items() if key.startswith(prefix)}
    return {
        key.removeprefix(prefix): value
        for key, value in {**model.values, **long}.items()
        if key.startswith(prefix)
    }


def _single(model: GgufModel, key: str, value: Any) -> Any:
    """One value for all layers; numbers in single precision as they were written in decimals."""
    if isinstance(value, list):
        if len({repr(each) for each in value}) != 1:
            raise _wrong(model, key, "differs between layers, which is not supported; use another model")
        value = value[0]
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise _wrong(model, key, f"is {str(value)[:40]!r}; it must be a number; download the file again")
    if not isinstance(value, float):
        return value
    return as_decimal(value)


def _check_count(model: GgufModel, key: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise _wrong(model, key, f"is {value}; it must be a positive integer; download the file again")


def _add_heads(model: GgufModel, keys: dict[str, Any], config: dict[str, Any]) -> None:
    """Adds the share of the channels that rotate, and checks what only other models have."""
    head_dim = config.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
    _check_count(model, "attention.key_length", head_dim)
    if keys.get("attention.value_length", head_dim) != head_dim:
        raise _wrong(
            model,
            "attention.value_length",
            "differs from the keys' length, which is not supported; use another model",
        )
    if keys.get("attention.causal", True) is not True:
        raise _wrong(
            model, "attention.causal", "is false, and only causal models are supported; use another model"
        )
    rotated = keys.get("rope.dimension_count", head_dim)
    if rotated != head_dim:
        if not isinstance(rotated, int) or not 0 < rotated <= head_dim:
            raise _wrong(model, "rope.dimension_count", f"must be from 1 to {head_dim}; use another model")
        config["partial_rotary_factor"] = rotated / head_dim


def _dtype(model: GgufModel) -> str:
    """The plain type of most weights; that of quantised ones is bfloat16."""
    types: Counter[str] = Counter()
    for tensor in model.tensors.values():
        if len(tensor.shape) > 1:
            types[tensor.dtype] += tensor.num_bytes
    return _PLAIN.get(types.most_common(1)[0][0], "bfloat16")


def _wrong(model: GgufModel, key: str, what: str) -> InvalidModel:
    return InvalidModel(f"{model.file}: key {model.architecture}.{key} {what}")
