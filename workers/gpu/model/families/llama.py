"""Llama, and what is published as Llama: Yi, LWM, Vicuna, DeepSeek's older models, SmolLM2."""

from __future__ import annotations

from dataclasses import replace

from moorage.workers.gpu.model.family import Family, PublishedModel, TensorNames
from moorage.workers.gpu.model.parts import Part
from moorage.workers.hf_fields import Fields
from moorage.workers.hf_keys import UNUSED_WINDOW
from moorage.workers.spec import ModelSpec

TENSORS = TensorNames(
    model={
        "model.embed_tokens": Part.EMBED,
        "model.norm": Part.FINAL_NORM,
        "lm_head": Part.LM_HEAD,
    },
    layer={
        "input_layernorm": Part.INPUT_NORM,
        "post_attention_layernorm": Part.POST_NORM,
        "self_attn.q_proj": Part.QUERY,
        "self_attn.k_proj": Part.KEY,
        "self_attn.v_proj": Part.VALUE,
        "self_attn.o_proj": Part.OUTPUT,
        "mlp.gate_proj": Part.GATE,
        "mlp.up_proj": Part.UP,
        "mlp.down_proj": Part.DOWN,
    },
    # Yi under its own class, before it was published as Llama.
    older_names={".ln1.": ".input_layernorm.", ".ln2.": ".post_attention_layernorm."},
)


def _own_keys(spec: ModelSpec, config: Fields) -> ModelSpec:
    attention = config.flag("attention_bias")
    return replace(spec, qkv_bias=attention, output_bias=attention, mlp_bias=config.flag("mlp_bias"))


_HALF, _TIED = {"dtype": "float16"}, {"tie_word_embeddings": True}

FAMILY = Family(
    name="llama",
    architectures=("LlamaForCausalLM", "YiForCausalLM"),
    model_types=("Yi", "yi"),
    tensors=TENSORS,
    own_keys=_own_keys,
    ignored=UNUSED_WINDOW,
    published={
        "llama-2-7b": PublishedModel(32, 4096, 11008, 32, 32, 32000, 4096, _HALF),
        "llama-2-13b": PublishedModel(40, 5120, 13824, 40, 40, 32000, 4096, _HALF),
        "llama-2-70b": PublishedModel(80, 8192, 28672, 64, 8, 32000, 4096, _HALF),
        "llama-3-8b": PublishedModel(32, 4096, 14336, 32, 8, 128256, 8192),
        "llama-3-70b": PublishedModel(80, 8192, 28672, 64, 8, 128256, 8192),
        "llama-3.1-8b": PublishedModel(32, 4096, 14336, 32, 8, 128256, 131072),
        "llama-3.1-70b": PublishedModel(80, 8192, 28672, 64, 8, 128256, 131072),
        "llama-3.1-405b": PublishedModel(126, 16384, 53248, 128, 8, 128256, 131072),
        "llama-3.2-1b": PublishedModel(16, 2048, 8192, 32, 8, 128256, 131072, _TIED),
        "llama-3.2-3b": PublishedModel(28, 3072, 8192, 24, 8, 128256, 131072, _TIED),
        "yi-9b-200k": PublishedModel(48, 4096, 11008, 32, 4, 64000, 262144),
        "lwm-text-7b": PublishedModel(32, 4096, 11008, 32, 32, 32000, 1048576, _HALF),
    },
)
