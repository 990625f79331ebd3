"""Shapes of common public models, as published in their configurations, for sizing without the files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from difflib import get_close_matches

from moorage.workers.errors import InvalidModel
from moorage.workers.spec import ModelSpec, RopeSpec


@dataclass(frozen=True, slots=True)
class _Shape:
    """The figures of a `config.json` that sizes depend on."""

    family: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocab: int
    max_positions: int
    head_dim: int = 128
    tied: bool = False
    dtype: str = "bfloat16"
    dynamic: float | None = None
    """Factor of dynamic NTK, where the checkpoint is published with it."""

    def spec(self) -> ModelSpec:
        """The figures as a ModelSpec; of the rotary embedding no more than how far it reaches."""
        rope = RopeSpec(
            rope_type="default" if self.dynamic is None else "dynamic",
            rotary_dim=self.head_dim,
            max_position_embeddings=self.max_positions,
            factor=self.dynamic or 1.0,
        )
        return ModelSpec(
            family=self.family,
            num_layers=self.layers,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_heads=self.heads,
            num_kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            vocab_size=self.vocab,
            max_position_embeddings=self.max_positions,
            rms_norm_eps=1e-5,
            rope=rope,
            tie_word_embeddings=self.tied,
            qkv_bias=self.family == "qwen2",
            qk_norm=self.family == "qwen3",
            dtype=self.dtype,
        )


_K = 1024
_SHAPES = {
    "llama-2-7b": _Shape("llama", 32, 4096, 11008, 32, 32, 32000, 4 * _K, dtype="float16"),
    "llama-2-13b": _Shape("llama", 40, 5120, 13824, 40, 40, 32000, 4 * _K, dtype="float16"),
    "llama-2-70b": _Shape("llama", 80, 8192, 28672, 64, 8, 32000, 4 * _K, dtype="float16"),
    "llama-3-8b": _Shape("llama", 32, 4096, 14336, 32, 8, 128256, 8 * _K),
    "llama-3-70b": _Shape("llama", 80, 8192, 28672, 64, 8, 128256, 8 * _K),
    "llama-3.1-8b": _Shape("llama", 32, 4096, 14336, 32, 8, 128256, 128 * _K),
    "llama-3.1-70b": _Shape("llama", 80, 8192, 28672, 64, 8, 128256, 128 * _K),
    "llama-3.1-405b": _Shape("llama", 126, 16384, 53248, 128, 8, 128256, 128 * _K),
    "llama-3.2-1b": _Shape("llama", 16, 2048, 8192, 32, 8, 128256, 128 * _K, head_dim=64, tied=True),
    "llama-3.2-3b": _Shape("llama", 28, 3072, 8192, 24, 8, 128256, 128 * _K, tied=True),
    "mistral-7b": _Shape("mistral", 32, 4096, 14336, 32, 8, 32000, 32 * _K),
    "qwen2.5-7b": _Shape("qwen2", 28, 3584, 18944, 28, 4, 152064, 32 * _K),
    "qwen2.5-14b": _Shape("qwen2", 48, 5120, 13824, 40, 8, 152064, 32 * _K),
    "qwen2.5-32b": _Shape("qwen2", 64, 5120, 27648, 40, 8, 152064, 32 * _K),
    "qwen2.5-72b": _Shape("qwen2", 80, 8192, 29568, 64, 8, 152064, 32 * _K),
    "qwen3-8b": _Shape("qwen3", 36, 4096, 12288, 32, 8, 151936, 40 * _K),
    "qwen3-14b": _Shape("qwen3", 40, 5120, 17408, 40, 8, 151936, 40 * _K),
    "qwen3-32b": _Shape("qwen3", 64, 5120, 25600, 64, 8, 151936, 40 * _K),
    "internlm2.5-7b-1m": _Shape("internlm2", 32, 4096, 14336, 32, 8, 92544, 256 * _K, dynamic=2.5),
    "yi-9b-200k": _Shape("llama", 48, 4096, 11008, 32, 4, 64000, 256 * _K),
    "lwm-text-7b": _Shape("llama", 32, 4096, 11008, 32, 32, 32000, 1024 * _K, dtype="float16"),
}

MODEL_PRESETS = {name: shape.spec() for name, shape in _SHAPES.items()}
"""Preset name -> shape."""


def find_model(name_or_directory: str) -> ModelSpec:
    """The preset of that name (in any case), or the shape of a local Hugging Face directory.

    Raises InvalidModel when there is neither, or when the path is not a model directory.
    """
    preset = MODEL_PRESETS.get(name_or_directory.lower())
    exists = os.path.exists(name_or_directory)
    if preset is not None and not exists:
        return preset
    if exists:
        from moorage.workers.hf_config import read_model_spec

        return read_model_spec(name_or_directory)
    near = get_close_matches(name_or_directory.lower(), MODEL_PRESETS, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise InvalidModel(
        f"{name_or_directory}: no such directory or model preset; {hint}presets: {', '.join(MODEL_PRESETS)}"
    )
