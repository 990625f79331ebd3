"""GLM-4 of 2025 (GLM-4-0414, GLM-Z1): the GLM-4 before it with norms after each part as well."""

from __future__ import annotations

from dataclasses import replace

from moorage.workers.gpu.model.families.glm import DEFAULTS, GLM_TENSORS, glm_keys
from moorage.workers.gpu.model.family import Family, PublishedModel
from moorage.workers.gpu.model.parts import Part
from moorage.workers.hf_fields import Fields
from moorage.workers.spec import ModelSpec, Residual


def _own_keys(spec: ModelSpec, config: Fields) -> ModelSpec:
    return replace(glm_keys(spec, config), residual=Residual.SANDWICH)


_KEYS = {"head_dim": 128, "partial_rotary_factor": 0.5, "rms_norm_eps": 1e-5}

FAMILY = Family(
    name="glm4",
    architectures=("Glm4ForCausalLM",),
    tensors=replace(
        GLM_TENSORS,
        layer={
            **GLM_TENSORS.layer,
            "post_self_attn_layernorm": Part.ATTENTION_OUT_NORM,
            "post_mlp_layernorm": Part.MLP_OUT_NORM,
        },
    ),
    own_keys=_own_keys,
    head_dim=128,
    rotates_partly=True,
    defaults=DEFAULTS,
    published={
        "glm-4-9b-0414": PublishedModel(
            40, 4096, 13696, 32, 2, 151552, 32768, {**_KEYS, "attention_bias": False}
        ),
        "glm-4-32b-0414": PublishedModel(
            61, 6144, 23040, 48, 2, 151552, 32768, {**_KEYS, "attention_bias": False}
        ),
    },
)
