"""GGUF files for tests, written with the package gguf as llama.cpp's converter writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedConfig

from tests.tiny_models import TinyModel

PERMUTED = ("llama", "internlm2", "granite", "granitemoe", "smollm3")
"""Architectures whose converter orders rows of queries and keys for the rotation of neighbouring channels."""


def write_gguf(
    path: Path,
    architecture: str,
    keys: Mapping[str, Any],
    tensors: Mapping[str, NDArray[Any]],
    types: Mapping[str, gguf.GGMLQuantizationType] | None = None,
) -> Path:
    """A file with these keys, named in full, and tensors; `types` are those of tensors that are given as blocks."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in keys.items():
        add_key(writer, key, value)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor, raw_dtype=(types or {}).get(name))
    _finish(writer)
    return path


def add_key(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """Adds a key in the type that llama.cpp expects of such a value."""
    add = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    add[type(value)](key, value)


def byte_level_keys(directory: Path) -> dict[str, Any]:
    """The keys of a file that llama.cpp's converter makes of tokenizer.json, of byte-pair merges."""
    source = json.loads((directory / "tokenizer.json").read_text())
    tokens = sorted(source["model"]["vocab"], key=source["model"]["vocab"].__getitem__)
    types = [1] * len(tokens)
    for added in source["added_tokens"]:
        if added["id"] == len(tokens):
            tokens.append(added["content"])
            types.append(1)
        types[added["id"]] = 3 if added["special"] else 4
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [" ".join(merge) for merge in source["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": tokens.index("<s>"),
        "tokenizer.ggml.eos_token_id": tokens.index("</s>"),
        "tokenizer.ggml.eot_token_id": tokens.index("<|im_end|>"),
    }


def convert(
    tiny: TinyModel,
    path: Path,
    architecture: str,
    kinds: Mapping[str, gguf.GGMLQuantizationType] | None = None,
    keys: Mapping[str, Any] | None = None,
) -> Path:
    """The checkpoint as a GGUF file; `keys` stand beside its own.

    `kinds` has types of matrices by pieces of their names, of which the last that fits counts; others are F32.
    """
    config = tiny.hf_model.config
    writer = gguf.GGUFWriter(path, architecture)
    _add_shape(writer, config)
    _add_rope(writer, config)
    _add_factors(writer, config)
    for key, value in {**_own_keys(architecture, config), **(keys or {})}.items():
        add_key(writer, key, value)
    number = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    state = tiny.hf_model.state_dict()
    if config.tie_word_embeddings:
        del state["lm_head.weight"]
    for name, tensor in _stack_heads(_one_part_each(state)).items():
        values = _ordered(name, tensor, config) if architecture in PERMUTED else tensor
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            values = values + 1
        found = names.get_name(name, (".weight", ".bias"))
        found = found if found.endswith((".weight", ".bias")) else f"{found}.weight"
        fitting = [kind for piece, kind in (kinds or {}).items() if piece in found]
        _add(writer, found, values.float().contiguous().numpy(), fitting[-1] if fitting else None)
    _finish(writer)
    return path


def _one_part_each(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors, with gate and up of experts apart and in rows, under the names that the converter has for them."""
    found = {}
    is_gpt_oss = any(name.endswith("self_attn.sinks") for name in state)
    for name, tensor in state.items():
        name = name.replace("block_sparse_moe.experts", "mlp.experts")
        name = name.replace("block_sparse_moe.router", "block_sparse_moe.router.layer")
        if ".experts." not in name:
            found[name] = tensor
            continue
        module, _, last = name.rpartition(".")
        part, kind = last.removesuffix("_bias"), "bias" if last.endswith("_bias") else "weight"
        rows = tensor.mT if is_gpt_oss and kind == "weight" else tensor
        if part == "down_proj":
            found[f"{module}.down_proj.{kind}"] = rows
            continue
        gate, up = (rows[:, ::2], rows[:, 1::2]) if is_gpt_oss else rows.chunk(2, dim=1)
        found |= {f"{module}.gate_proj.{kind}": gate, f"{module}.up_proj.{kind}": up}
    return found


def _own_keys(architecture: str, config: PreTrainedConfig) -> dict[str, Any]:
    """The keys of one architecture."""
    names = {
        "expert_count": ("num_local_experts", "num_experts"),
        "expert_used_count": ("num_experts_per_tok",),
        "expert_feed_forward_length": ("moe_intermediate_size",),
        "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
        "attention.sliding_window": ("sliding_window",),
        "attention.scale": ("attention_multiplier",),
        "embedding_scale": ("embedding_multiplier",),
        "residual_scale": ("residual_multiplier",),
        "logit_scale": ("logits_scaling", "logit_scale"),
        "attn_logit_softcapping": ("attn_logit_softcapping",),
        "final_logit_softcapping": ("final_logit_softcapping",),
        "use_parallel_residual": ("use_parallel_residual",),
    }
    found = {
        f"{architecture}.{key}": getattr(config, name)
        for key, options in names.items()
        for name in options
        if getattr(config, name, None)
    }
    if architecture == "gpt-oss":
        found["gpt-oss.expert_feed_forward_length"] = config.intermediate_size
    if architecture == "olmo2" and getattr(config, "sliding_window", None):
        slides = [kind == "sliding_attention" for kind in config.layer_types]
        found[f"{architecture}.attention.sliding_window_pattern"] = slides
    if architecture in ("llama", "qwen2", "qwen3"):
        found.pop(f"{architecture}.attention.sliding_window", None)
    return found


def _add(
    writer: gguf.GGUFWriter, name: str, values: NDArray[np.float32], kind: gguf.GGMLQuantizationType | None
) -> None:
    if kind is None or values.ndim == 1:
        writer.add_tensor(name, values)
    else:
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)


def _add_factors(writer: gguf.GGUFWriter, config: PreTrainedConfig) -> None:
    """The divisors of single frequencies that Phi-3 has."""
    rope = config.rope_parameters
    if rope.get("rope_type") == "longrope":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        for kind in ("short", "long"):
            factors = np.array(rope[f"{kind}_factor"], np.float32)
            writer.add_tensor(f"rope_factors_{kind}.weight", factors)


def _stack_heads(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """One tensor for the norms of all heads, which StableLM has one by one."""
    found: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        module, _, head = name.removesuffix(".weight").partition(".norms.")
        if not head:
            found[name] = tensor
        elif int(head) == 0:
            number = sum(other.startswith(f"{module}.norms.") for other in state)
            heads = [state[f"{module}.norms.{i}.weight"] for i in range(number)]
            found[f"{module}.weight"] = torch.stack(heads)
    return found


def _add_shape(writer: gguf.GGUFWriter, config: PreTrainedConfig) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    rotated = config.rope_parameters.get("partial_rotary_factor", 1.0)
    writer.add_rope_dimension_count(int(head_dim * rotated))
    if hasattr(config, "layer_norm_eps"):
        writer.add_layer_norm_eps(config.layer_norm_eps)
    else:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)


def _add_rope(writer: gguf.GGUFWriter, config: PreTrainedConfig) -> None:
    rope = config.rope_parameters
    if "full_attention" in rope:
        if "rope_theta" in rope["sliding_attention"] and writer.arch.startswith("gemma"):
            writer.add_float32(f"{writer.arch}.rope.freq_base_swa", rope["sliding_attention"]["rope_theta"])
        rope = rope["full_attention"]
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


def _ordered(name: str, tensor: torch.Tensor, config: PreTrainedConfig) -> torch.Tensor:
    """Rows of queries and keys as the converter of Llama orders them."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    number = next((count for part, count in heads.items() if part in name), None)
    if number is None:
        return tensor
    halves = tensor.reshape(number, 2, -1, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape).contiguous()


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
