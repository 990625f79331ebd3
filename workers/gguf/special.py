"""What llama.cpp's own code decides for single architectures by their sizes, as keys of config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Config = Mapping[str, Any]
_GEMMA2_27B_LAYERS, _GEMMA3_27B_LAYERS = 46, 62
_GEMMA3_PATTERN, _GEMMA3_LOCAL_THETA = 6, 10000.0


def _gemma2(config: Config) -> dict[str, Any]:
    return _attention_scalar(config, _GEMMA2_27B_LAYERS)


def _gemma3(config: Config) -> dict[str, Any]:
    pattern = {
        "sliding_window_pattern": _GEMMA3_PATTERN,
        "rope_local_base_freq": config.get("rope_local_base_freq", _GEMMA3_LOCAL_THETA),
    }
    return pattern | _attention_scalar(config, _GEMMA3_27B_LAYERS)


def _attention_scalar(config: Config, largest: int) -> dict[str, Any]:
    """The largest models scale queries by the hidden size of a head, the others by its channels."""
    is_largest = config["num_hidden_layers"] == largest
    scalar = config["hidden_size"] // config["num_attention_heads"] if is_largest else config["head_dim"]
    return {"query_pre_attn_scalar": scalar, "hidden_activation": "gelu_pytorch_tanh"}


def _gpt_oss(config: Config) -> dict[str, Any]:
    """The authors do not round the limits of YaRN, and all projections of attention have biases."""
    return {"attention_bias": True, "rope_scaling": {**config.get("rope_scaling", {}), "truncate": False}}


def special_keys(architecture: str, config: Config) -> dict[str, Any]:
    """More keys of an architecture, by those that are read so far."""
    return SPECIAL[architecture](config) if architecture in SPECIAL else {}


SPECIAL: Mapping[str, Callable[[Config], dict[str, Any]]] = {
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "gpt-oss": _gpt_oss,
}
