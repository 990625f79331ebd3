"""GLM-4 of 2024: a Llama whose heads rotate half of their channels, in alternating order, with gate and up packed."""

from __future__ import annotations

from dataclasses import replace

from moorage.workers.gpu.model.families.llama import TENSORS
from moorage.workers.gpu.model.family import Family, Packed, PublishedModel
from moorage.workers.gpu.model.parts import Part
from moorage.workers.hf_fields import Fields
from moorage.workers.spec import ModelSpec

GLM_TENSORS = replace(
    TENSORS,
    layer={
        **{name: part for name, part in TENSORS.layer.items() if part not in (Part.GATE, Part.UP)},
        "mlp.gate_up_proj": Packed((Part.GATE, Part.UP)),
    },
    older_names={},
    interleaved_rotation=True,
)


def glm_keys(spec: ModelSpec, config: Fields) -> ModelSpec:
    """`spec` with the biases of queries, keys and values in both generations of GLM-4. Raises InvalidModel."""
    return replace(spec, qkv_bias=config.flag("attention_bias", True))


DEFAULTS = {"rms_norm_eps": 1.5625e-07, "num_key_value_heads": 2, "partial_rotary_factor": 0.5}
_KEYS = {"head_dim": 128, "partial_rotary_factor": 0.5, "rms_norm_eps": 1.5625e-07}

FAMILY = Family(
    name="glm",
    architectures=("GlmForCausalLM",),
    tensors=GLM_TENSORS,
    own_keys=glm_keys,
    head_dim=128,
    rotates_partly=True,
    defaults=DEFAULTS,
    published={
        "glm-4-9b": PublishedModel(40, 4096, 13696, 32, 2, 151552, 131072, _KEYS),
        "glm-4-9b-1m": PublishedModel(40, 4096, 13696, 32, 4, 151552, 1048576, _KEYS),
    },
)
