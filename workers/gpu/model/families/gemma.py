"""Gemma 1: a Llama with GELU, scaled embeddings and norms that are stored less by one."""

from __future__ import annotations

import math
from dataclasses import replace

from moorage.workers.gpu.model.families.gemma2 import GEMMA_ACCEPTED
from moorage.workers.gpu.model.families.llama import TENSORS
from moorage.workers.gpu.model.family import Family, PublishedModel
from moorage.workers.hf_fields import Fields
from moorage.workers.spec import Activation, ModelSpec


def _own_keys(spec: ModelSpec, config: Fields) -> ModelSpec:
    biased = config.flag("attention_bias")
    return replace(
        spec,
        qkv_bias=biased,
        output_bias=biased,
        activation=Activation.GELU_TANH,
        embedding_scale=math.sqrt(spec.hidden_size),
    )


FAMILY = Family(
    name="gemma",
    architectures=("GemmaForCausalLM",),
    tensors=replace(TENSORS, older_names={}, norms_less_one=True),
    own_keys=_own_keys,
    defaults={"tie_word_embeddings": True, "head_dim": 256},
    accepted=GEMMA_ACCEPTED,
    published={
        "gemma-2b": PublishedModel(18, 2048, 16384, 8, 1, 256000, 8192),
        "gemma-7b": PublishedModel(28, 3072, 24576, 16, 16, 256000, 8192),
    },
)
