"""Gemma 3, its text part: five of six layers slide, with a rotary embedding of their own; heads are normalised."""

from __future__ import annotations

from dataclasses import replace

from moorage.workers.gpu.model.families.gemma2 import DEFAULTS, GEMMA_ACCEPTED, GEMMA_TENSORS, gemma_keys
from moorage.workers.gpu.model.family import VISION, Family, PublishedModel
from moorage.workers.gpu.model.parts import Part
from moorage.workers.hf_fields import Fields
from moorage.workers.hf_layers import read_pattern, read_window, with_sliding_rope, with_windows
from moorage.workers.hf_rope import read_sliding_rope
from moorage.workers.spec import ModelSpec, QkNorm


def _own_keys(spec: ModelSpec, config: Fields) -> ModelSpec:
    slides = read_pattern(config, default=6)
    spec = replace(gemma_keys(spec, config), qk_norm=QkNorm.HEAD)
    spec = with_sliding_rope(spec, slides, read_sliding_rope(config, spec.head_dim))
    return with_windows(spec, config, slides, read_window(config, 4096))


_LAYER = {**GEMMA_TENSORS.layer, "self_attn.q_norm": Part.Q_NORM, "self_attn.k_norm": Part.K_NORM}


_TENSORS = replace(GEMMA_TENSORS, layer=_LAYER)
_SCALED = {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "sliding_window": 1024}

FAMILY = Family(
    name="gemma3",
    architectures=("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
    model_types=("gemma3_text",),
    tensors=_TENSORS,
    other_tensors=_TENSORS.of_text_part(),
    text_config="text_config",
    other_modalities=VISION,
    own_keys=_own_keys,
    rope_by_layer=True,
    ignored=("_sliding_window_pattern",),  # transformers 5 writes it beside layer_types, and does not read it
    defaults={
        **DEFAULTS,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
    },
    accepted=GEMMA_ACCEPTED,
    published={
        "gemma-3-1b": PublishedModel(26, 1152, 6912, 4, 1, 262144, 32768, {"sliding_window": 512}),
        "gemma-3-4b": PublishedModel(34, 2560, 10240, 8, 4, 262208, 131072, _SCALED),
        "gemma-3-12b": PublishedModel(48, 3840, 15360, 16, 8, 262208, 131072, _SCALED),
        "gemma-3-27b": PublishedModel(
            62,
            5376,
            21504,
            32,
            16,
            262208,
            131072,
            {**_SCALED, "head_dim": 128, "query_pre_attn_scalar": 168},
        ),
    },
)
