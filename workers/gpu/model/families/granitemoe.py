"""Granite 3 with experts: a Granite whose feed-forward parts are experts, some of which compute each token."""

from __future__ import annotations

from dataclasses import replace

from moorage.workers.gpu.model.families.granite import granite_keys
from moorage.workers.gpu.model.families.llama import TENSORS
from moorage.workers.gpu.model.family import AllExperts, Family, PublishedModel, TensorNames
from moorage.workers.gpu.model.parts import Part
from moorage.workers.hf_experts import read_expert_counts, with_experts
from moorage.workers.hf_fields import Fields
from moorage.workers.spec import ExpertScores, ExpertsSpec, ModelSpec


def _own_keys(spec: ModelSpec, config: Fields) -> ModelSpec:
    number, per_token = read_expert_counts(config)
    experts = ExpertsSpec(number, per_token, spec.intermediate_size, ExpertScores.SOFTMAX_NORMALIZED)
    return with_experts(replace(granite_keys(spec, config), mlp_bias=False), experts)


_SUFFIXES = (".weight", ".bias")
_LAYER = {
    **{name: part for name, part in TENSORS.layer.items() if not name.startswith("mlp.")},
    "block_sparse_moe.router.layer": Part.ROUTER,
    "block_sparse_moe.input_linear": AllExperts((Part.EXPERT_GATE, Part.EXPERT_UP), suffixes=_SUFFIXES),
    "block_sparse_moe.output_linear": AllExperts((Part.EXPERT_DOWN,), suffixes=_SUFFIXES),
}
_KEYS = {
    "tie_word_embeddings": True,
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.015625,
    "logits_scaling": 6.0,
    "rope_theta": 10000000.0,
    "num_experts_per_tok": 8,
}

FAMILY = Family(
    name="granitemoe",
    architectures=("GraniteMoeForCausalLM",),
    tensors=TensorNames(TENSORS.model, _LAYER),
    own_keys=_own_keys,
    defaults={"num_local_experts": 8, "num_experts_per_tok": 2},
    published={
        "granite-3.1-1b-a400m": PublishedModel(
            24, 1024, 512, 16, 8, 49155, 131072, {**_KEYS, "num_local_experts": 32}
        ),
        "granite-3.1-3b-a800m": PublishedModel(
            32, 1536, 512, 24, 8, 49155, 131072, {**_KEYS, "num_local_experts": 40}
        ),
    },
)
