"""StableLM: LayerNorms with biases, and rotation of a quarter of each head."""

from __future__ import annotations

from dataclasses import replace

from moorage.workers.gpu.model.families.llama import TENSORS
from moorage.workers.gpu.model.family import EachHead, Family, PublishedModel
from moorage.workers.gpu.model.parts import Part
from moorage.workers.hf_fields import Fields
from moorage.workers.spec import ModelSpec, NormKind, QkNorm, Residual


def _own_keys(spec: ModelSpec, config: Fields) -> ModelSpec:
    return replace(
        spec,
        norm=NormKind.LAYER,
        norm_bias=True,
        rms_norm_eps=config.epsilon("layer_norm_eps"),
        residual=Residual.PARALLEL if config.flag("use_parallel_residual") else Residual.PRE,
        qkv_bias=config.flag("use_qkv_bias"),
        qk_norm=QkNorm.HEAD_LAYER if config.flag("qk_layernorm") else QkNorm.NONE,
    )


FAMILY = Family(
    name="stablelm",
    architectures=("StableLmForCausalLM",),
    tensors=replace(
        TENSORS,
        layer={
            **TENSORS.layer,
            "self_attn.q_layernorm.norms.{head}": EachHead(Part.Q_NORM),
            "self_attn.k_layernorm.norms.{head}": EachHead(Part.K_NORM),
        },
        older_names={},
    ),
    own_keys=_own_keys,
    rotates_partly=True,
    defaults={"partial_rotary_factor": 0.25, "layer_norm_eps": 1e-5},
    published={
        "stablelm-3b-4e1t": PublishedModel(32, 2560, 6912, 32, 32, 50304, 4096),
        "stablelm-2-1.6b": PublishedModel(
            24, 2048, 5632, 32, 32, 100352, 4096, {"dtype": "float16", "use_qkv_bias": True}
        ),
        "stablelm-2-12b": PublishedModel(
            40, 5120, 13824, 32, 8, 100352, 4096, {"use_parallel_residual": True, "qk_layernorm": True}
        ),
    },
)
