"""What each architecture of llama.cpp is among our families, and what its keys are called in config.json; as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Architecture:
    """One value of `general.architecture`."""

    hf_class: str
    """The class that config.json would name."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """Key in the file, without the architecture's name before it -> key of config.json; beside COMMON."""
    fixed: Mapping[str, object] = field(default_factory=dict)
    """Keys of config.json that the file has not, since llama.cpp's own code has their values."""
    flags: Mapping[str, str] = field(default_factory=dict)
    """Tensor of layer 0 -> flag of config.json that is true when the file has it."""
    pairs: bool = False
    """Whether rows of queries and keys that rotate together stand side by side."""


COMMON: Mapping[str, str] = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "rope.freq_base": "rope_theta",
}
_RMS = {"attention.layer_norm_rms_epsilon": "rms_norm_eps"}
_LAYER_NORM = {"attention.layer_norm_epsilon": "layer_norm_eps"}
_WINDOW = {"attention.sliding_window": "sliding_window"}
IGNORED = (
    "vocab_size",
    "attention.value_length",
    "attention.causal",
    "attention.sliding_window_pattern",
    "tensor_data_layout",
    "rope.dimension_count",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scale_linear",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "rope.scaling.attn_factor",
    "rope.scaling.yarn_log_multiplier",
    "rope.scaling.yarn_ext_factor",
    "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
)
"""Keys that config.py reads by itself, or that say what the tensors say."""
NEUTRAL: Mapping[str, object] = {
    "expert_gating_func": 1,
    "expert_weights_scale": 1.0,
    "expert_group_count": 1,
}
"""Values of other keys that change nothing, beside 0: softmax over the experts, a factor of 1, one group."""
_BIASES = {"attn_q.bias": "attention_bias"}
_LLAMA_FLAGS = {**_BIASES, "ffn_down.bias": "mlp_bias"}
_MIXTRAL = {"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"}
_QWEN_MOE = {
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
}
_GRANITE = {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}
_GEMMA2 = {
    **_RMS,
    **_WINDOW,
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}

ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("LlamaForCausalLM", _RMS, flags=_LLAMA_FLAGS, pairs=True),
    "mixtral": Architecture("MixtralForCausalLM", {**_RMS, **_MIXTRAL}, pairs=True),
    "qwen2": Architecture("Qwen2ForCausalLM", _RMS),
    "qwen3": Architecture("Qwen3ForCausalLM", _RMS, flags=_BIASES),
    "internlm2": Architecture("InternLM2ForCausalLM", _RMS, {"bias": False}, pairs=True),
    "qwen2moe": Architecture(
        "Qwen2MoeForCausalLM",
        {**_RMS, **_QWEN_MOE, "expert_shared_feed_forward_length": "shared_expert_intermediate_size"},
        {"norm_topk_prob": False},
    ),
    "qwen3moe": Architecture("Qwen3MoeForCausalLM", {**_RMS, **_QWEN_MOE}, {"norm_topk_prob": True}),
    "olmoe": Architecture("OlmoeForCausalLM", {**_RMS, **_QWEN_MOE}, {"norm_topk_prob": False}),
    "gemma": Architecture("GemmaForCausalLM", _RMS, {"hidden_activation": "gelu_pytorch_tanh"}),
    "gemma2": Architecture("Gemma2ForCausalLM", _GEMMA2),
    "gemma3": Architecture(
        "Gemma3ForCausalLM", {**_RMS, **_WINDOW, "rope.freq_base_swa": "rope_local_base_freq"}
    ),
    "phi3": Architecture("Phi3ForCausalLM", {**_RMS, **_WINDOW}),
    "granite": Architecture("GraniteForCausalLM", {**_RMS, **_GRANITE}, flags=_LLAMA_FLAGS, pairs=True),
    "granitemoe": Architecture(
        "GraniteMoeForCausalLM", {**_RMS, **_GRANITE, **_MIXTRAL}, flags=_BIASES, pairs=True
    ),
    "olmo2": Architecture("Olmo2ForCausalLM", _RMS),
    "olmo3": Architecture("Olmo3ForCausalLM", {**_RMS, **_WINDOW}),
    "chatglm": Architecture(
        "GlmForCausalLM", _RMS, flags={**_BIASES, "attn_qkv.bias": "attention_bias"}, pairs=True
    ),
    "glm4": Architecture("Glm4ForCausalLM", _RMS, flags=_BIASES, pairs=True),
    "smollm3": Architecture(
        "SmolLM3ForCausalLM", _RMS, {"no_rope_layer_interval": 4}, flags=_LLAMA_FLAGS, pairs=True
    ),
    "command-r": Architecture(
        "CohereForCausalLM",
        {**_LAYER_NORM, "logit_scale": "logit_scale"},
        flags={**_BIASES, "attn_q_norm.weight": "use_qk_norm"},
        pairs=True,
    ),
    "cohere2": Architecture(
        "Cohere2ForCausalLM",
        {**_LAYER_NORM, **_WINDOW, "logit_scale": "logit_scale"},
        {"sliding_window_pattern": 4},
        flags=_BIASES,
        pairs=True,
    ),
    "stablelm": Architecture(
        "StableLmForCausalLM",
        {**_LAYER_NORM, "use_parallel_residual": "use_parallel_residual"},
        flags={"attn_q.bias": "use_qkv_bias", "attn_q_norm.weight": "qk_layernorm"},
    ),
    "gpt-oss": Architecture(
        "GptOssForCausalLM",
        {
            **_RMS,
            **_WINDOW,
            "expert_count": "num_local_experts",
            "expert_used_count": "num_experts_per_tok",
            "expert_feed_forward_length": "intermediate_size",
        },
    ),
}
