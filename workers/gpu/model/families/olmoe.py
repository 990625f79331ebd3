"""OLMoE: a Llama with experts that normalises all queries together, and all keys."""

from __future__ import annotations

from dataclasses import replace

from moorage.workers.gpu.model.families.llama import TENSORS
from moorage.workers.gpu.model.families.mixtral import MERGED_EXPERTS
from moorage.workers.gpu.model.families.qwen2_moe import ONE_EACH
from moorage.workers.gpu.model.family import ACCEPTED, Accepted, Family, PublishedModel, TensorNames
from moorage.workers.gpu.model.parts import Part
from moorage.workers.hf_experts import read_expert_counts, with_experts
from moorage.workers.hf_fields import Fields
from moorage.workers.spec import ExpertScores, ExpertsSpec, ModelSpec, QkNorm


def _own_keys(spec: ModelSpec, config: Fields) -> ModelSpec:
    number, per_token = read_expert_counts(config)
    normalized, biased = config.flag("norm_topk_prob"), config.flag("attention_bias")
    scores = ExpertScores.SOFTMAX_NORMALIZED if normalized else ExpertScores.SOFTMAX
    experts = ExpertsSpec(number, per_token, spec.intermediate_size, scores)
    spec = replace(spec, qk_norm=QkNorm.ALL_HEADS, qkv_bias=biased, output_bias=biased)
    return with_experts(spec, experts)


_LAYER = {
    **{name: part for name, part in TENSORS.layer.items() if not name.startswith("mlp.")},
    "self_attn.q_norm": Part.Q_NORM,
    "self_attn.k_norm": Part.K_NORM,
}

FAMILY = Family(
    name="olmoe",
    architectures=("OlmoeForCausalLM",),
    tensors=TensorNames(TENSORS.model, {**_LAYER, **ONE_EACH}),
    other_tensors=(TensorNames(TENSORS.model, {**_LAYER, "mlp.gate": Part.ROUTER, **MERGED_EXPERTS}),),
    own_keys=_own_keys,
    defaults={"rms_norm_eps": 1e-5, "num_experts": 64, "num_experts_per_tok": 8},
    accepted=(*ACCEPTED, Accepted("clip_qkv", (), "null: queries, keys and values are never clipped")),
    published={
        "olmoe-1b-7b": PublishedModel(16, 2048, 1024, 16, 16, 50304, 4096),
    },
)
