"""Gemma 2: norms before and after each part, capped logits, and windows in every other layer."""

from __future__ import annotations

import math
from dataclasses import replace

from moorage.workers.gpu.model.families.llama import TENSORS
from moorage.workers.gpu.model.family import ACCEPTED, Accepted, Family, PublishedModel
from moorage.workers.gpu.model.parts import Part
from moorage.workers.hf_fields import Fields
from moorage.workers.hf_layers import read_layer_types, read_window, with_windows
from moorage.workers.spec import Activation, ModelSpec, Residual

GELU = ("gelu_pytorch_tanh",)
GEMMA_ACCEPTED = (
    Accepted("hidden_activation", GELU, "gelu_pytorch_tanh, the only supported activation"),
    # transformers computes hidden_activation; early configurations name another one beside it.
    Accepted("hidden_act", (*GELU, "gelu"), "gelu_pytorch_tanh, the only supported activation"),
    Accepted("use_bidirectional_attention", (False,), "false: a model that generates attends no later token"),
    *(accepted for accepted in ACCEPTED if accepted.key != "hidden_act"),
)
GEMMA_TENSORS = replace(
    TENSORS,
    layer={
        **TENSORS.layer,
        "post_attention_layernorm": Part.ATTENTION_OUT_NORM,
        "pre_feedforward_layernorm": Part.POST_NORM,
        "post_feedforward_layernorm": Part.MLP_OUT_NORM,
    },
    older_names={},
    norms_less_one=True,
)


def gemma_keys(spec: ModelSpec, config: Fields) -> ModelSpec:
    """`spec` with what Gemma 2 and Gemma 3 have in common. Raises InvalidModel."""
    biased = config.flag("attention_bias")
    return replace(
        spec,
        qkv_bias=biased,
        output_bias=biased,
        residual=Residual.SANDWICH,
        activation=Activation.GELU_TANH,
        embedding_scale=math.sqrt(spec.hidden_size),
        attention_scale=config.positive_float("query_pre_attn_scalar") ** -0.5,
        attention_softcap=config.optional_positive_float("attn_logit_softcapping"),
        logit_softcap=config.optional_positive_float("final_logit_softcapping"),
    )


def _own_keys(spec: ModelSpec, config: Fields) -> ModelSpec:
    slides = read_layer_types(config) or tuple(layer % 2 == 0 for layer in range(spec.num_layers))
    return with_windows(gemma_keys(spec, config), config, slides, read_window(config, 4096))


_CAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
DEFAULTS = {"tie_word_embeddings": True, "head_dim": 256, "query_pre_attn_scalar": 256}

FAMILY = Family(
    name="gemma2",
    architectures=("Gemma2ForCausalLM",),
    tensors=GEMMA_TENSORS,
    own_keys=_own_keys,
    defaults={**DEFAULTS, **_CAPS},
    accepted=GEMMA_ACCEPTED,
    published={
        "gemma-2-2b": PublishedModel(26, 2304, 9216, 8, 4, 256000, 8192),
        "gemma-2-9b": PublishedModel(42, 3584, 14336, 16, 8, 256000, 8192),
        "gemma-2-27b": PublishedModel(
            46, 4608, 36864, 32, 16, 256000, 8192, {"head_dim": 128, "query_pre_attn_scalar": 144}
        ),
    },
)
