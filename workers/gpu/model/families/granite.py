"""Granite 3: a Llama with factors on embeddings, attention, residual sums and logits."""

from __future__ import annotations

from dataclasses import replace

from moorage.workers.gpu.model.families.llama import TENSORS
from moorage.workers.gpu.model.family import Family, PublishedModel
from moorage.workers.hf_fields import Fields
from moorage.workers.spec import ModelSpec


def granite_keys(spec: ModelSpec, config: Fields) -> ModelSpec:
    """`spec` with Granite's factors and biases. Raises InvalidModel."""
    attention = config.flag("attention_bias")
    return replace(
        spec,
        qkv_bias=attention,
        output_bias=attention,
        mlp_bias=config.flag("mlp_bias"),
        embedding_scale=config.positive_float("embedding_multiplier", 1.0),
        residual_scale=config.positive_float("residual_multiplier", 1.0),
        attention_scale=config.positive_float("attention_multiplier", 1.0),
        logit_scale=1 / config.positive_float("logits_scaling", 1.0),
    )


_KEYS = {
    "tie_word_embeddings": True,
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "rope_theta": 10000000.0,
    "rms_norm_eps": 1e-5,
}

FAMILY = Family(
    name="granite",
    architectures=("GraniteForCausalLM",),
    tensors=TENSORS,
    own_keys=granite_keys,
    published={
        "granite-3.3-2b": PublishedModel(
            40,
            2048,
            8192,
            32,
            8,
            49159,
            131072,
            {**_KEYS, "attention_multiplier": 0.015625, "logits_scaling": 8.0},
        ),
        "granite-3.3-8b": PublishedModel(
            40,
            4096,
            12800,
            32,
            8,
            49159,
            131072,
            {**_KEYS, "attention_multiplier": 0.0078125, "logits_scaling": 16.0},
        ),
    },
)
