"""Qwen3: a Qwen2 that normalises each head of queries and keys, with biases only where config.json asks for them."""

from __future__ import annotations

from dataclasses import replace

from moorage.workers.gpu.model.families.llama import TENSORS
from moorage.workers.gpu.model.families.qwen2 import YARN_CLAIM, qwen_keys
from moorage.workers.gpu.model.family import Family, PublishedModel
from moorage.workers.gpu.model.parts import Part
from moorage.workers.hf_fields import Fields
from moorage.workers.hf_keys import UNUSED_WINDOW
from moorage.workers.spec import ModelSpec, QkNorm


def _own_keys(spec: ModelSpec, config: Fields) -> ModelSpec:
    biased = config.flag("attention_bias")
    return replace(qwen_keys(spec, config), qkv_bias=biased, output_bias=biased, qk_norm=QkNorm.HEAD)


_THETA = {"rope_theta": 1000000.0}
_TIED = {**_THETA, "tie_word_embeddings": True}

FAMILY = Family(
    name="qwen3",
    architectures=("Qwen3ForCausalLM",),
    head_dim=128,
    tensors=replace(
        TENSORS,
        layer={**TENSORS.layer, "self_attn.q_norm": Part.Q_NORM, "self_attn.k_norm": Part.K_NORM},
    ),
    own_keys=_own_keys,
    ignored=(*UNUSED_WINDOW, "use_qk_norm"),
    published={
        "qwen3-4b": PublishedModel(
            36, 2560, 9728, 32, 8, 151936, 40960, {**_THETA, "tie_word_embeddings": True}, YARN_CLAIM
        ),
        "qwen3-8b": PublishedModel(36, 4096, 12288, 32, 8, 151936, 40960, _THETA, YARN_CLAIM),
        "qwen3-14b": PublishedModel(40, 5120, 17408, 40, 8, 151936, 40960, _THETA, YARN_CLAIM),
        "qwen3-32b": PublishedModel(64, 5120, 25600, 64, 8, 151936, 40960, _THETA, YARN_CLAIM),
    },
)
