"""Qwen3-MoE: a Qwen3 with experts, eight of which compute each token."""

from __future__ import annotations

from dataclasses import replace

from moorage.workers.gpu.model.families.llama import TENSORS
from moorage.workers.gpu.model.families.mixtral import MERGED_EXPERTS
from moorage.workers.gpu.model.families.qwen2 import YARN_CLAIM, qwen_keys
from moorage.workers.gpu.model.families.qwen2_moe import NO_SLIDING_WINDOW, ONE_EACH, read_qwen_experts
from moorage.workers.gpu.model.families.qwen3 import FAMILY as QWEN3
from moorage.workers.gpu.model.family import ACCEPTED, Family, PublishedModel, TensorNames
from moorage.workers.gpu.model.parts import Part
from moorage.workers.hf_experts import read_dense_layers, with_experts
from moorage.workers.hf_fields import Fields
from moorage.workers.hf_keys import UNUSED_WINDOW
from moorage.workers.spec import ModelSpec, QkNorm


def _own_keys(spec: ModelSpec, config: Fields) -> ModelSpec:
    biased = config.flag("attention_bias")
    spec = replace(qwen_keys(spec, config), qkv_bias=biased, output_bias=biased, qk_norm=QkNorm.HEAD)
    return with_experts(spec, read_qwen_experts(config), read_dense_layers(config, spec.num_layers))


def _keys(number: int, intermediate_size: int, theta: float = 1e6) -> dict[str, object]:
    return {
        "num_experts": number,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": intermediate_size,
        "norm_topk_prob": True,
        "head_dim": 128,
        "rope_theta": theta,
    }


_LAYER = QWEN3.tensors.layer

FAMILY = Family(
    name="qwen3_moe",
    architectures=("Qwen3MoeForCausalLM",),
    tensors=TensorNames(TENSORS.model, {**_LAYER, **ONE_EACH}),
    other_tensors=(TensorNames(TENSORS.model, {**_LAYER, "mlp.gate": Part.ROUTER, **MERGED_EXPERTS}),),
    own_keys=_own_keys,
    ignored=(*UNUSED_WINDOW, "use_qk_norm"),
    accepted=(*ACCEPTED, NO_SLIDING_WINDOW),
    published={
        "qwen3-30b-a3b": PublishedModel(48, 2048, 6144, 32, 4, 151936, 40960, _keys(128, 768), YARN_CLAIM),
        "qwen3-30b-a3b-2507": PublishedModel(48, 2048, 6144, 32, 4, 151936, 262144, _keys(128, 768, 1e7)),
        "qwen3-235b-a22b": PublishedModel(
            94, 4096, 12288, 64, 4, 151936, 40960, _keys(128, 1536), YARN_CLAIM
        ),
        "qwen3-coder-480b-a35b": PublishedModel(62, 6144, 8192, 96, 8, 151936, 262144, _keys(160, 2560, 1e7)),
    },
)
