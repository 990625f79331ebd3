"""Published config.json files, scaled down in width, as checkpoints with random weights.

What is as published: every flag, scaling, pattern of layers, number of experts and shape ratio that the computation
depends on. What is not: the numbers of channels, heads and tokens, the depth beyond two periods of the pattern, and
lengths, which are all divided by one number so that a prompt of 200 tokens passes the trained length and windows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from moorage.workers.hf_config import read_model_spec
from tests.tiny_models import (
    OF_TEXT_PART,
    TinyModel,
    draw_wide,
    rename_tensors,
    replace_experts,
    round_to_mxfp4,
    save_as_internlm2,
)

DIRECTORY = Path(__file__).parent / "workers" / "gpu" / "model" / "published"
PUBLISHED: Mapping[str, Path] = {
    path.stem.replace("--", "/"): path for path in sorted(DIRECTORY.glob("*.json"))
}
"""The file of each model, by its name on the hub."""

TRAINED = 128
"""Tokens of the trained length, or of the one before its scaling."""
MOST_LAYERS, MOST_KV_HEADS, MOST_GROUP = 4, 2, 3
WIDTHS = {
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 48,
    "vocab_size": 320,
}
LENGTHS = (
    "max_position_embeddings",
    "original_max_position_embeddings",
    "initial_context_length",
    "max_sequence_length",
    "model_max_length",
    "sliding_window",
)
SIZES = ("vocab_size", "num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings")
"""Keys to scale, which a text part may leave to its architecture."""
PERIODS = {"gemma3_text": 6}
"""Of the pattern of layers, where config.json leaves it to the architecture."""
BY_LAYER = ("layer_types", "no_rope_layers")
LOGIT_DEVIATION = 1.0
"""Standard deviation of the logits, so that no distribution over tokens is flat."""


def read(name: str) -> dict[str, Any]:
    """The config.json of a model, as published."""
    config: dict[str, Any] = json.loads(PUBLISHED[name].read_text())
    return config


def scaled(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with few channels, heads, layers and tokens, in its text part where it has several."""
    if "text_config" not in config:
        return _scaled(config)
    text = config["text_config"]
    left_out = {
        key: getattr(CONFIG_MAPPING[text["model_type"]](), key, None) for key in SIZES if key not in text
    }
    shared = {"torch_dtype": "float32"} | _small_ids(config)
    return dict(config) | shared | {"text_config": _scaled({**left_out, **text})}


def _scaled(config: Mapping[str, Any]) -> dict[str, Any]:
    heads, kv_heads = config["num_attention_heads"], config.get("num_key_value_heads")
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    found = dict(config) | {name: width for name, width in WIDTHS.items() if name in config}
    groups = heads // (kv_heads or heads)
    few = min(kv_heads or heads, MOST_KV_HEADS)
    found["num_attention_heads"] = few * min(groups, MOST_GROUP)
    if kv_heads is not None:
        found["num_key_value_heads"] = few
    # Families without the key take the hidden size by the number of heads.
    found["hidden_size"] = 96 if "head_dim" in config else found["num_attention_heads"] * head_dim
    found["num_hidden_layers"] = min(config["num_hidden_layers"], _most_layers(config))
    for key in BY_LAYER:
        if config.get(key) is not None:
            found[key] = config[key][: found["num_hidden_layers"]]
    return _shorter(found) | {"torch_dtype": "float32"} | _small_ids(found)


def _most_layers(config: Mapping[str, Any]) -> int:
    """Two periods of the pattern, or MOST_LAYERS."""
    types = config.get("layer_types") or ["full_attention"]
    period = (
        config.get("sliding_window_pattern")
        or config.get("no_rope_layer_interval")
        or PERIODS.get(config["model_type"])
        or types.index("full_attention") + 1
    )
    return max(MOST_LAYERS, 2 * int(period))


def _shorter(config: dict[str, Any]) -> dict[str, Any]:
    """All lengths by one number."""
    rope = config.get("rope_scaling") or {}
    trained = rope.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
    divisor = (trained or config["max_position_embeddings"]) // TRAINED

    def shorter(values: Mapping[str, Any]) -> dict[str, Any]:
        least = {"sliding_window": 8}
        return {
            key: max(least.get(key, 1), value // divisor) if key in LENGTHS and value else value
            for key, value in values.items()
        }

    found = shorter(config)
    if config.get("rope_scaling"):
        found["rope_scaling"] = shorter(rope)
    return found


def _small_ids(config: Mapping[str, Any]) -> dict[str, Any]:
    """Ids of special tokens within the vocabulary."""
    small = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return {name: token for name, token in small.items() if config.get(name) is not None}


def build(name: str, directory: Path, seed: int = 0) -> TinyModel:
    """Writes the scaled checkpoint of a published model, whose config.json has the published keys."""
    config = scaled(read(name))
    text = config.get("text_config", config)
    model = _reference(text)
    torch.manual_seed(seed)
    draw_wide(model, torch.Generator().manual_seed(seed))
    packed = round_to_mxfp4(model) if "quantization_config" in config else {}
    _make_telling(model, text)
    model.save_pretrained(directory)
    if packed:
        replace_experts(directory, packed)
    if config["model_type"] == "internlm2":
        save_as_internlm2(model, directory)
    if text is not config:
        rename_tensors(model, directory, OF_TEXT_PART, leave_head=model.config.tie_word_embeddings)
    (directory / "config.json").write_text(json.dumps(config, indent=1))
    return TinyModel(directory, model, read_model_spec(directory))


def _reference(config: dict[str, Any]) -> PreTrainedModel:
    values = {key: value for key, value in config.items() if key not in ("auto_map", "quantization_config")}
    if config["model_type"] == "internlm2":
        # transformers has no class of its own for it: it computes as Llama does.
        values |= {"model_type": "llama", "attention_bias": config["bias"]}
    made: PreTrainedConfig = CONFIG_MAPPING[values["model_type"]].from_dict(values)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        made, attn_implementation="eager", dtype=torch.float32
    )
    return model.eval()


@torch.no_grad()
def _make_telling(model: PreTrainedModel, config: Mapping[str, Any]) -> None:
    """Scales queries to peaked attention and the last matrix, or norm, to logits that differ."""
    if (multiplier := config.get("attention_multiplier")) is not None:
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.mul_(layer.self_attn.head_dim**-0.5 / multiplier)
    ids = torch.randint(model.config.vocab_size, (1, 64), generator=torch.Generator().manual_seed(1))
    gain = LOGIT_DEVIATION / model(input_ids=ids, use_cache=False).logits.std()
    if model.config.tie_word_embeddings:
        norm, offset = model.model.norm, float(config["model_type"].startswith("gemma"))
        norm.weight.copy_((norm.weight + offset) * gain - offset)
    else:
        model.lm_head.weight.mul_(gain)
