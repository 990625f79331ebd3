"""Command-R: attention and feed-forward part in parallel after one LayerNorm, and scaled logits."""

from __future__ import annotations

from dataclasses import replace

from moorage.workers.gpu.model.families.llama import TENSORS
from moorage.workers.gpu.model.family import Claim, Family, PublishedModel
from moorage.workers.gpu.model.parts import Part
from moorage.workers.hf_fields import Fields
from moorage.workers.spec import ModelSpec, NormKind, QkNorm, Residual

COHERE_TENSORS = replace(
    TENSORS,
    layer={
        **{name: part for name, part in TENSORS.layer.items() if name != "post_attention_layernorm"},
        "self_attn.q_norm": Part.Q_NORM,
        "self_attn.k_norm": Part.K_NORM,
    },
    older_names={},
    interleaved_rotation=True,
)
DEFAULTS = {"tie_word_embeddings": True, "logit_scale": 0.0625, "layer_norm_eps": 1e-5}


def cohere_keys(spec: ModelSpec, config: Fields) -> ModelSpec:
    """`spec` with what Command-R and its successors have in common. Raises InvalidModel."""
    biased = config.flag("attention_bias")
    return replace(
        spec,
        norm=NormKind.LAYER,
        rms_norm_eps=config.epsilon("layer_norm_eps"),
        residual=Residual.PARALLEL,
        qkv_bias=biased,
        output_bias=biased,
        logit_scale=config.positive_float("logit_scale"),
    )


def _own_keys(spec: ModelSpec, config: Fields) -> ModelSpec:
    qk_norm = QkNorm.HEAD_LAYER if config.flag("use_qk_norm") else QkNorm.NONE
    return replace(cohere_keys(spec, config), qk_norm=qk_norm)


_LONG = Claim(131072)

FAMILY = Family(
    name="cohere",
    architectures=("CohereForCausalLM",),
    tensors=COHERE_TENSORS,
    own_keys=_own_keys,
    defaults={**DEFAULTS, "rope_theta": 500000.0},
    published={
        "command-r-v01": PublishedModel(
            40, 8192, 22528, 64, 64, 256000, 8192, {"dtype": "float16", "rope_theta": 8000000.0}, _LONG
        ),
        "command-r-08-2024": PublishedModel(
            40, 8192, 24576, 64, 8, 256000, 131072, {"dtype": "float16", "rope_theta": 4000000.0}
        ),
        "command-r-plus": PublishedModel(
            64,
            12288,
            33792,
            96,
            8,
            256000,
            8192,
            {
                "dtype": "float16",
                "rope_theta": 75000000.0,
                "logit_scale": 0.8333333333333334,
                "use_qk_norm": True,
            },
            _LONG,
        ),
        "aya-23-8b": PublishedModel(
            32, 4096, 14336, 32, 8, 256000, 8192, {"dtype": "float16", "rope_theta": 10000.0}
        ),
    },
)
