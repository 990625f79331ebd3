"""GPT-OSS: experts with biases and a clamped gate; every other layer slides; query heads have learned sinks."""

from __future__ import annotations

from dataclasses import replace

from moorage.workers.gpu.model.families.llama import TENSORS
from moorage.workers.gpu.model.family import (
    ACCEPTED,
    Accepted,
    AllExperts,
    Family,
    Mxfp4Experts,
    PublishedModel,
    TensorNames,
    Unsuffixed,
)
from moorage.workers.gpu.model.parts import Part
from moorage.workers.hf_experts import read_expert_counts, with_experts
from moorage.workers.hf_fields import Fields
from moorage.workers.hf_layers import read_layer_types, read_window, with_windows
from moorage.workers.spec import Activation, ExpertScores, ExpertsSpec, ModelSpec


def _own_keys(spec: ModelSpec, config: Fields) -> ModelSpec:
    biased = config.flag("attention_bias", True)
    number, per_token = read_expert_counts(config)
    experts = ExpertsSpec(
        number,
        per_token,
        spec.intermediate_size,
        ExpertScores.SOFTMAX_NORMALIZED,
        router_bias=True,
        bias=True,
        is_mxfp4=config.child("quantization_config") is not None,
    )
    slides = read_layer_types(config) or tuple(layer % 2 == 0 for layer in range(spec.num_layers))
    typed = config.get("dtype") is not None or config.get("torch_dtype") is not None
    spec = replace(
        spec,
        dtype=spec.dtype if typed else "bfloat16",  # published without a type; its tensors are of this one
        qkv_bias=biased,
        output_bias=biased,
        activation=Activation.CLAMPED_SWISH,
        attention_sinks=True,
    )
    return with_windows(with_experts(spec, experts), config, slides, read_window(config, 128))


_GATE_UP = (Part.EXPERT_GATE, Part.EXPERT_UP)
_LAYER = {
    **{name: part for name, part in TENSORS.layer.items() if not name.startswith("mlp.")},
    "self_attn.sinks": Unsuffixed(Part.SINKS),
    "mlp.router": Part.ROUTER,
}
_FLOAT = {
    "mlp.experts.gate_up_proj": AllExperts(_GATE_UP, interleaved=True, transposed=True),
    "mlp.experts.down_proj": AllExperts((Part.EXPERT_DOWN,), transposed=True),
}
_MXFP4 = {
    "mlp.experts.gate_up_proj": Mxfp4Experts(_GATE_UP, interleaved=True),
    "mlp.experts.down_proj": Mxfp4Experts((Part.EXPERT_DOWN,)),
}
_KEYS = {
    "head_dim": 64,
    "num_experts_per_tok": 4,
    "quantization_config": {"quant_method": "mxfp4"},
    "rope_theta": 150000,
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "original_max_position_embeddings": 4096,
        "truncate": False,
    },
}

FAMILY = Family(
    name="gpt_oss",
    architectures=("GptOssForCausalLM",),
    head_dim=64,
    tensors=TensorNames(TENSORS.model, {**_LAYER, **_FLOAT}),
    other_tensors=(TensorNames(TENSORS.model, {**_LAYER, **_MXFP4}),),
    quant_methods=("mxfp4",),
    own_keys=_own_keys,
    ignored=("experts_per_token", "initial_context_length"),  # said again by other keys
    accepted=(
        *ACCEPTED,
        Accepted("swiglu_alpha", (1.702,), "1.702, the only supported slope of the gate"),
        Accepted("swiglu_limit", (7.0, 7), "7.0, the only supported limit of the gate"),
    ),
    published={
        "gpt-oss-20b": PublishedModel(
            24, 2880, 2880, 64, 8, 201088, 131072, {**_KEYS, "num_local_experts": 32}
        ),
        "gpt-oss-120b": PublishedModel(
            36, 2880, 2880, 64, 8, 201088, 131072, {**_KEYS, "num_local_experts": 128}
        ),
    },
)
