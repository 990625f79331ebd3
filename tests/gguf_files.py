"""GGUF files for tests, written with the package gguf as llama.cpp's converter writes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedConfig

from tests.tiny_models import TinyModel

PERMUTED = ("llama", "internlm2", "granite", "smollm3")
"""Architectures whose converter orders rows of queries and keys for the rotation of neighbouring channels."""
Extra = Callable[[gguf.GGUFWriter, PreTrainedConfig], None]
"""Adds the keys of one architecture."""


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


def convert(
    tiny: TinyModel,
    path: Path,
    architecture: str,
    kind: gguf.GGMLQuantizationType | None = None,
    extra: Extra = lambda _writer, _config: None,
    keys: Mapping[str, Any] | None = None,
) -> Path:
    """The checkpoint as a GGUF file; `kind` is the type of its matrices, F32 unless given."""
    config = tiny.hf_model.config
    writer = gguf.GGUFWriter(path, architecture)
    _add_shape(writer, config)
    extra(writer, config)
    for key, value in (keys or {}).items():
        add_key(writer, key, value)
    number = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    state = tiny.hf_model.state_dict()
    if config.tie_word_embeddings:
        del state["lm_head.weight"]
    for name, tensor in state.items():
        values = _ordered(name, tensor, config) if architecture in PERMUTED else tensor
        _add(writer, names.get_name(name, (".weight", ".bias")), values.float().numpy(), kind)
    _finish(writer)
    return path


def _add(
    writer: gguf.GGUFWriter, name: str, values: NDArray[np.float32], kind: gguf.GGMLQuantizationType | None
) -> None:
    if kind is None or values.ndim == 1:
        writer.add_tensor(name, values)
    else:
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)


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
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)


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
