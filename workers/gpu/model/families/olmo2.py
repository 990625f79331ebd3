"""OLMo 2: norms after each part instead of before it, and one over all heads of queries and of keys."""

from __future__ import annotations

from dataclasses import replace

from moorage.workers.gpu.model.families.llama import TENSORS as LLAMA_TENSORS
from moorage.workers.gpu.model.family import Family, PublishedModel
from moorage.workers.gpu.model.parts import Part
from moorage.workers.hf_fields import Fields
from moorage.workers.spec import ModelSpec, QkNorm, Residual

TENSORS = replace(
    LLAMA_TENSORS,
    layer={
        **{name: part for name, part in LLAMA_TENSORS.layer.items() if not name.endswith("layernorm")},
        "post_attention_layernorm": Part.ATTENTION_OUT_NORM,
        "post_feedforward_layernorm": Part.MLP_OUT_NORM,
        "self_attn.q_norm": Part.Q_NORM,
        "self_attn.k_norm": Part.K_NORM,
    },
    older_names={},
)


def olmo_keys(spec: ModelSpec, config: Fields) -> ModelSpec:
    """`spec` with what OLMo 2 and OLMo 3 have in common. Raises InvalidModel."""
    biased = config.flag("attention_bias")
    return replace(
        spec, residual=Residual.POST, qk_norm=QkNorm.ALL_HEADS, qkv_bias=biased, output_bias=biased
    )


_THETA = {"rope_theta": 500000.0}

FAMILY = Family(
    name="olmo2",
    architectures=("Olmo2ForCausalLM",),
    tensors=TENSORS,
    own_keys=olmo_keys,
    defaults={"rms_norm_eps": 1e-5},
    published={
        "olmo-2-1b": PublishedModel(16, 2048, 8192, 16, 16, 100352, 4096, _THETA),
        "olmo-2-7b": PublishedModel(32, 4096, 11008, 32, 32, 100352, 4096, _THETA),
        "olmo-2-13b": PublishedModel(40, 5120, 13824, 40, 40, 100352, 4096, _THETA),
        "olmo-2-32b": PublishedModel(64, 5120, 27648, 40, 8, 100352, 4096, _THETA),
    },
)
