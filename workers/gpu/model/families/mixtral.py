"""Mixtral: a Mistral whose feed-forward parts are experts, two of which compute each token."""

from __future__ import annotations

from dataclasses import replace

from moorage.workers.gpu.model.families.llama import TENSORS
from moorage.workers.gpu.model.family import (
    AllExperts,
    EachExpert,
    Family,
    PublishedModel,
    TensorNames,
)
from moorage.workers.gpu.model.parts import Part
from moorage.workers.hf_experts import read_expert_counts, with_experts
from moorage.workers.hf_fields import Fields
from moorage.workers.hf_layers import read_window, with_windows
from moorage.workers.spec import ExpertScores, ExpertsSpec, ModelSpec


def _own_keys(spec: ModelSpec, config: Fields) -> ModelSpec:
    number, per_token = read_expert_counts(config)
    experts = ExpertsSpec(number, per_token, spec.intermediate_size, ExpertScores.SOFTMAX_NORMALIZED)
    slides = (True,) * spec.num_layers
    return with_experts(with_windows(spec, config, slides, read_window(config, None)), experts)


_KEYS = {"num_local_experts": 8, "num_experts_per_tok": 2, "rope_theta": 1000000.0}
_ATTENTION = {name: part for name, part in TENSORS.layer.items() if not name.startswith("mlp.")}
MERGED_EXPERTS: dict[str, AllExperts] = {
    "mlp.experts.gate_up_proj": AllExperts((Part.EXPERT_GATE, Part.EXPERT_UP)),
    "mlp.experts.down_proj": AllExperts((Part.EXPERT_DOWN,)),
}
"""As transformers 5 holds experts in memory, and writes them where asked to."""

FAMILY = Family(
    name="mixtral",
    architectures=("MixtralForCausalLM",),
    tensors=replace(
        TENSORS,
        layer={
            **_ATTENTION,
            "block_sparse_moe.gate": Part.ROUTER,
            "block_sparse_moe.experts.{expert}.w1": EachExpert(Part.EXPERT_GATE),
            "block_sparse_moe.experts.{expert}.w3": EachExpert(Part.EXPERT_UP),
            "block_sparse_moe.experts.{expert}.w2": EachExpert(Part.EXPERT_DOWN),
        },
    ),
    other_tensors=(TensorNames(TENSORS.model, {**_ATTENTION, "mlp.gate": Part.ROUTER, **MERGED_EXPERTS}),),
    own_keys=_own_keys,
    published={
        "mixtral-8x7b": PublishedModel(32, 4096, 14336, 32, 8, 32000, 32768, _KEYS),
        "mixtral-8x22b": PublishedModel(56, 6144, 16384, 48, 8, 32768, 65536, _KEYS),
    },
)
