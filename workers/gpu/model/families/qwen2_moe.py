"""Qwen2-MoE and Qwen1.5-MoE: a Qwen2 with experts, one of which computes every token."""

from __future__ import annotations

from dataclasses import replace

from moorage.workers.gpu.model.families.llama import TENSORS
from moorage.workers.gpu.model.families.mixtral import MERGED_EXPERTS
from moorage.workers.gpu.model.families.qwen2 import qwen_keys
from moorage.workers.gpu.model.family import (
    ACCEPTED,
    Accepted,
    EachExpert,
    Family,
    Held,
    PublishedModel,
    TensorNames,
)
from moorage.workers.gpu.model.parts import Part
from moorage.workers.hf_experts import MOST_INTERMEDIATE, read_dense_layers, read_expert_counts, with_experts
from moorage.workers.hf_fields import Fields
from moorage.workers.hf_keys import UNUSED_WINDOW
from moorage.workers.spec import ExpertScores, ExpertsSpec, ModelSpec


def read_qwen_experts(config: Fields) -> ExpertsSpec:
    """The experts that Qwen2 and Qwen3 have in common: none is shared. Raises InvalidModel."""
    number, per_token = read_expert_counts(config)
    normalized = config.flag("norm_topk_prob")
    return ExpertsSpec(
        number,
        per_token,
        config.positive_int("moe_intermediate_size", most=MOST_INTERMEDIATE),
        ExpertScores.SOFTMAX_NORMALIZED if normalized else ExpertScores.SOFTMAX,
    )


def _own_keys(spec: ModelSpec, config: Fields) -> ModelSpec:
    shared = config.positive_int("shared_expert_intermediate_size", most=MOST_INTERMEDIATE)
    experts = replace(read_qwen_experts(config), shared_intermediate_size=shared, shared_gate=True)
    spec = replace(qwen_keys(spec, config), qkv_bias=config.flag("qkv_bias", True))
    return with_experts(spec, experts, read_dense_layers(config, spec.num_layers))


NO_SLIDING_WINDOW = Accepted("use_sliding_window", (False,), "false: no published model with experts slides")
ONE_EACH: dict[str, Held] = {
    "mlp.gate": Part.ROUTER,
    "mlp.experts.{expert}.gate_proj": EachExpert(Part.EXPERT_GATE),
    "mlp.experts.{expert}.up_proj": EachExpert(Part.EXPERT_UP),
    "mlp.experts.{expert}.down_proj": EachExpert(Part.EXPERT_DOWN),
}
_SHARED = {
    "mlp.shared_expert.gate_proj": Part.SHARED_GATE,
    "mlp.shared_expert.up_proj": Part.SHARED_UP,
    "mlp.shared_expert.down_proj": Part.SHARED_DOWN,
    "mlp.shared_expert_gate": Part.SHARED_WEIGHT,
}
_LAYER = {**TENSORS.layer, **_SHARED}

FAMILY = Family(
    name="qwen2_moe",
    architectures=("Qwen2MoeForCausalLM",),
    tensors=TensorNames(TENSORS.model, {**_LAYER, **ONE_EACH}),
    other_tensors=(TensorNames(TENSORS.model, {**_LAYER, "mlp.gate": Part.ROUTER, **MERGED_EXPERTS}),),
    own_keys=_own_keys,
    ignored=UNUSED_WINDOW,
    accepted=(*ACCEPTED, NO_SLIDING_WINDOW),
    published={
        "qwen1.5-moe-a2.7b": PublishedModel(
            24,
            2048,
            5632,
            16,
            16,
            151936,
            8192,
            {
                "rope_theta": 1000000.0,
                "num_experts": 60,
                "num_experts_per_tok": 4,
                "moe_intermediate_size": 1408,
                "shared_expert_intermediate_size": 5632,
            },
        ),
        "qwen2-57b-a14b": PublishedModel(
            28,
            3584,
            18944,
            28,
            4,
            151936,
            32768,
            {
                "rope_theta": 1000000.0,
                "num_experts": 64,
                "num_experts_per_tok": 8,
                "moe_intermediate_size": 2560,
                "shared_expert_intermediate_size": 20480,
            },
        ),
    },
)
