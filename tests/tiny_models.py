"""Random-weight checkpoints of every family, small enough for tests, with transformers as their oracle.

Weights are drawn wide: logits have a standard deviation above 1 and attention is peaked, so that a wrong
rotation, scale or mask shows. With transformers' own initialisation it would not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Cohere2Config,
    Cohere2ForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    Glm4Config,
    Glm4ForCausalLM,
    GlmConfig,
    GlmForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    GraniteMoeConfig,
    GraniteMoeForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Olmo3Config,
    Olmo3ForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
    StableLmConfig,
    StableLmForCausalLM,
)
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from moorage.workers.hf_config import read_model_spec
from moorage.workers.spec import ModelSpec

_COMMON: Mapping[str, Any] = {
    "vocab_size": 173,
    "hidden_size": 128,
    "intermediate_size": 144,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}


@dataclass(frozen=True)
class _Family:
    config: type[PreTrainedConfig]
    model: type[PreTrainedModel]
    fields: Mapping[str, Any]
    rope: Mapping[str, Any]
    published_as: str = ""
    """How the files on disk differ from what transformers saves: older rope keys, or another class."""


_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_GPT_OSS: Mapping[str, Any] = {
    "head_dim": 32,
    "num_hidden_layers": 4,
    "intermediate_size": 96,
    "num_local_experts": 5,
    "num_experts_per_tok": 2,
    "sliding_window": 24,
}
_GPT_OSS_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 150000.0,
    "factor": 32.0,
    "original_max_position_embeddings": 128,
    "truncate": False,
}
_GRANITE: Mapping[str, Any] = {
    "attention_multiplier": 0.25,
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "logits_scaling": 0.125,
}
_GEMMA3: Mapping[str, Any] = {
    "head_dim": 32,
    "query_pre_attn_scalar": 24,
    "sliding_window": 24,
    "num_hidden_layers": 7,
}
_GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 2e4},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
}
_OLMO3_ROPE = {
    "full_attention": {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 64,
        "rope_theta": 5e5,
    },
    "sliding_attention": {"rope_type": "default", "rope_theta": 5e5},
}
_FAMILIES: Mapping[str, _Family] = {
    "llama2": _Family(
        LlamaConfig, LlamaForCausalLM, {"head_dim": 32, "num_key_value_heads": 4}, {"rope_theta": 10000.0}
    ),
    "llama3": _Family(
        LlamaConfig, LlamaForCausalLM, {"head_dim": 64, "tie_word_embeddings": True}, _LLAMA3_ROPE
    ),
    "llama_biased": _Family(
        LlamaConfig, LlamaForCausalLM, {"head_dim": 16, "attention_bias": True, "mlp_bias": True}, {}
    ),
    "mistral": _Family(
        MistralConfig,
        MistralForCausalLM,
        {"head_dim": 128, "num_key_value_heads": 1, "sliding_window": None},
        {"rope_theta": 1e6},
    ),
    "mistral3": _Family(
        MistralConfig,
        MistralForCausalLM,
        {"head_dim": 32, "sliding_window": None},
        {"rope_theta": 1e9},
        published_as="Mistral3ForConditionalGeneration",
    ),
    "qwen2": _Family(
        Qwen2Config,
        Qwen2ForCausalLM,
        {"hidden_size": 192, "tie_word_embeddings": True},
        {"rope_theta": 1e6},
    ),
    "qwen3": _Family(
        Qwen3Config,
        Qwen3ForCausalLM,
        {"head_dim": 64, "num_key_value_heads": 1, "hidden_size": 80},
        {"rope_theta": 1e6},
    ),
    "mixtral": _Family(
        MixtralConfig,
        MixtralForCausalLM,
        {"num_local_experts": 6, "num_experts_per_tok": 2},
        {"rope_theta": 1e6},
    ),
    "gemma": _Family(GemmaConfig, GemmaForCausalLM, {"head_dim": 32, "tie_word_embeddings": True}, {}),
    "granite": _Family(GraniteConfig, GraniteForCausalLM, {**_GRANITE, "attention_bias": True}, {}),
    "granitemoe": _Family(
        GraniteMoeConfig,
        GraniteMoeForCausalLM,
        {**_GRANITE, "num_local_experts": 6, "num_experts_per_tok": 2},
        {},
    ),
    "olmoe": _Family(OlmoeConfig, OlmoeForCausalLM, {"num_experts": 6, "num_experts_per_tok": 2}, {}),
    "olmo2": _Family(Olmo2Config, Olmo2ForCausalLM, {}, {"rope_theta": 5e5}),
    "phi3": _Family(
        Phi3Config,
        Phi3ForCausalLM,
        {
            "max_position_embeddings": 2048,
            "original_max_position_embeddings": 512,
            "tie_word_embeddings": True,
        },
        {
            "rope_type": "longrope",
            "partial_rotary_factor": 0.75,
            "short_factor": [1.0 + i / 20 for i in range(12)],
            "long_factor": [1.0 + i for i in range(12)],
            "original_max_position_embeddings": 512,
        },
    ),
    "phi3_window": _Family(Phi3Config, Phi3ForCausalLM, {"sliding_window": 23}, {}),
    "smollm3": _Family(
        SmolLM3Config,
        SmolLM3ForCausalLM,
        {"no_rope_layers": [1, 0, 1], "attention_bias": True},
        {"rope_theta": 2e6},
    ),
    "cohere": _Family(
        CohereConfig,
        CohereForCausalLM,
        {"use_qk_norm": True, "logit_scale": 1.25, "tie_word_embeddings": True},
        {"rope_theta": 8e6},
    ),
    "cohere_biased": _Family(
        CohereConfig,
        CohereForCausalLM,
        {"attention_bias": True, "logit_scale": 1.25},
        {"rope_theta": 10000.0},
    ),
    "cohere2": _Family(
        Cohere2Config,
        Cohere2ForCausalLM,
        {"num_hidden_layers": 4, "sliding_window": 23, "logit_scale": 1.25},
        {"rope_theta": 50000.0},
    ),
    "stablelm": _Family(
        StableLmConfig,
        StableLmForCausalLM,
        {"use_qkv_bias": True},
        {"partial_rotary_factor": 0.5},
    ),
    "stablelm_parallel": _Family(
        StableLmConfig,
        StableLmForCausalLM,
        {"head_dim": 32, "use_parallel_residual": True, "qk_layernorm": True},
        {"partial_rotary_factor": 0.25},
    ),
    "gemma2": _Family(
        Gemma2Config,
        Gemma2ForCausalLM,
        {
            "head_dim": 32,
            "query_pre_attn_scalar": 12,
            "sliding_window": 24,
            "attn_logit_softcapping": 8.0,
            "final_logit_softcapping": 6.0,
        },
        {},
    ),
    "gemma3": _Family(Gemma3TextConfig, Gemma3ForCausalLM, _GEMMA3, _GEMMA3_ROPE),
    "gemma3_vision": _Family(
        Gemma3TextConfig,
        Gemma3ForCausalLM,
        _GEMMA3,
        _GEMMA3_ROPE,
        published_as="Gemma3ForConditionalGeneration",
    ),
    "glm": _Family(GlmConfig, GlmForCausalLM, {"head_dim": 32}, {"partial_rotary_factor": 0.5}),
    "glm4": _Family(
        Glm4Config,
        Glm4ForCausalLM,
        {"head_dim": 64, "attention_bias": False},
        {"partial_rotary_factor": 0.5},
    ),
    "olmo3": _Family(
        Olmo3Config, Olmo3ForCausalLM, {"sliding_window": 24, "num_hidden_layers": 5}, _OLMO3_ROPE
    ),
    "gpt_oss": _Family(GptOssConfig, GptOssForCausalLM, _GPT_OSS, _GPT_OSS_ROPE),
    "gpt_oss_mxfp4": _Family(GptOssConfig, GptOssForCausalLM, _GPT_OSS, _GPT_OSS_ROPE, published_as="mxfp4"),
    "qwen2_moe": _Family(
        Qwen2MoeConfig,
        Qwen2MoeForCausalLM,
        {
            "num_experts": 5,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 48,
            "shared_expert_intermediate_size": 80,
            "mlp_only_layers": [1],
        },
        {},
    ),
    "qwen3_moe": _Family(
        Qwen3MoeConfig,
        Qwen3MoeForCausalLM,
        {
            "head_dim": 64,
            "num_experts": 16,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 48,
            "norm_topk_prob": True,
        },
        {"rope_theta": 1e6},
    ),
    "qwen3_moe_merged": _Family(
        Qwen3MoeConfig,
        Qwen3MoeForCausalLM,
        {
            "head_dim": 64,
            "num_hidden_layers": 4,
            "num_experts": 4,
            "num_experts_per_tok": 1,
            "moe_intermediate_size": 48,
            "decoder_sparse_step": 2,
        },
        {},
        published_as="merged",
    ),
    "internlm2": _Family(
        LlamaConfig,
        LlamaForCausalLM,
        {"hidden_size": 192, "num_key_value_heads": 2},
        {"rope_type": "dynamic", "factor": 2.5, "rope_theta": 1e6},
        published_as="internlm2",
    ),
    "yi": _Family(LlamaConfig, LlamaForCausalLM, {}, {"rope_theta": 5e6}, published_as="yi"),
    "lwm": _Family(
        LlamaConfig,
        LlamaForCausalLM,
        {"head_dim": 16, "num_key_value_heads": 4},
        {"rope_theta": 5e7},
        published_as="legacy",
    ),
    "together": _Family(
        LlamaConfig, LlamaForCausalLM, {}, {"rope_type": "linear", "factor": 8.0}, published_as="legacy"
    ),
    "vicuna": _Family(
        LlamaConfig, LlamaForCausalLM, {}, {"rope_type": "linear", "factor": 4.0}, published_as="legacy"
    ),
}
OF_TEXT_PART = {"model.": "language_model.model.", "lm_head.": "language_model.lm_head."}
"""How names of tensors begin where text is one of several parts, as published."""
FAMILIES = tuple(_FAMILIES)
"""Names that `build_tiny_checkpoint` takes."""


@dataclass(frozen=True)
class TinyModel:
    """A checkpoint on disk and the transformers model with the same weights (eval, fp32, eager attention)."""

    directory: Path
    hf_model: PreTrainedModel
    spec: ModelSpec

    def logits(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Oracle logits f32 [T, V] of one prompt, int64 [T]."""
        _forget_lengths(self.hf_model)
        with torch.inference_mode():
            return self.hf_model(input_ids=token_ids[None], use_cache=False).logits[0]

    def greedy(self, token_ids: torch.Tensor, num_tokens: int) -> list[int]:
        """The oracle's next `num_tokens` tokens, end-of-sequence ignored."""
        ids = token_ids
        for _ in range(num_tokens):
            ids = torch.cat((ids, self.logits(ids)[-1].argmax()[None]))
        return ids[len(token_ids) :].tolist()


def random_prompt(spec: ModelSpec, num_tokens: int, seed: int = 0) -> torch.Tensor:
    """Token ids int64 [num_tokens], uniform over the vocabulary."""
    return torch.randint(spec.vocab_size, (num_tokens,), generator=torch.Generator().manual_seed(seed))


def build_tiny_checkpoint(
    family: str,
    directory: Path,
    *,
    seed: int = 0,
    rope: dict[str, Any] | None = None,
    **config_overrides: Any,
) -> TinyModel:
    """Write a checkpoint of `family` (one of FAMILIES) into `directory`.

    `rope` replaces the family's rope_parameters (rope_theta is 10000 unless given); other keywords replace
    fields of its transformers configuration.
    """
    made = _FAMILIES[family]
    parameters = dict(made.rope if rope is None else rope)
    if "full_attention" not in parameters:
        parameters = {"rope_type": "default", "rope_theta": 10000.0} | parameters
    fields = {**_COMMON, **made.fields, **config_overrides}
    config = made.config(**fields, rope_parameters=parameters, attn_implementation="eager")
    model = made.model(config).eval()
    draw_wide(model, torch.Generator().manual_seed(seed))
    packed = round_to_mxfp4(model) if made.published_as == "mxfp4" else {}
    _assert_telling(model, seed)
    _forget_lengths(model)
    # transformers 5 computes with one tensor for all experts; most checkpoints hold one for each.
    model.save_pretrained(directory, save_original_format=made.published_as != "merged")
    if packed:
        replace_experts(directory, packed)
    _publish(made.published_as, model, directory)
    return TinyModel(directory, model, read_model_spec(directory))


WIDE = ("q_proj", "k_proj", "qkv_proj", "q_norm", "k_norm", "q_layernorm", "k_layernorm", "lm_head")
"""Pieces of the names of weights on which logits and the peaks of attention depend most."""


@torch.no_grad()
def draw_wide(model: PreTrainedModel, generator: torch.Generator) -> None:
    """Queries and keys wide enough for peaked attention, not so wide that fp32 rounding grows to 1e-4."""
    # Tied embeddings stay as wide as others; the final norm then keeps their logits in range.
    less = (
        1.0 if model.config.model_type.startswith("gemma") else 0.0
    )  # what Gemma's norms add to their weight
    final_norm = 1.5 / model.config.hidden_size**0.5 if model.config.tie_word_embeddings else 1.0
    head_dim = (
        getattr(model.config, "head_dim", None)
        or model.config.hidden_size // model.config.num_attention_heads
    )
    num_values = model.config.num_key_value_heads * head_dim
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        wide = any(part in name for part in WIDE)
        gain = 1.5 if wide else final_norm if name == "model.norm.weight" else 1.0
        if name.endswith(("bias", "sinks")):
            weight.copy_(0.3 * noise)
        elif "norm" in name:
            weight.copy_(gain * (1 + 0.2 * noise) - less)
        elif "embed_tokens" in name:
            weight.copy_(noise)
        else:
            weight.copy_(gain * noise / weight.shape[-1] ** 0.5)
            if name.endswith("qkv_proj.weight"):  # values stay as wide as others
                weight[-num_values:] /= gain


def _assert_telling(model: PreTrainedModel, seed: int) -> None:
    """Fail when the weights would let a wrong attention pass."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(model.config.vocab_size, (1, 96), generator=generator)
    with torch.inference_mode():
        out = model(input_ids=ids, output_attentions=True, use_cache=False)
    assert out.logits.std() > 1, f"logits are too flat: {out.logits.std():.2f}"
    heaviest = torch.stack([layer[..., -32:, :].amax(-1).mean() for layer in out.attentions])
    assert heaviest.min() > 0.2, f"attention is too flat: {heaviest.tolist()}"


@torch.no_grad()
def round_to_mxfp4(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Gives experts random weights that MXFP4 can hold, and returns their codes and scales by tensor name."""
    packed = {}
    for name, weight in model.named_parameters():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            number, width, rows = weight.shape
            blocks = torch.randint(256, (number, rows, width // 32, 16), dtype=torch.uint8)
            scales = torch.randint(121, 124, blocks.shape[:3], dtype=torch.uint8)
            weight.copy_(convert_moe_packed_tensors(blocks, scales, dtype=torch.float32))
            packed |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
    return packed


def replace_experts(directory: Path, packed: Mapping[str, torch.Tensor]) -> None:
    """Writes codes and scales into the checkpoint in place of the float weights of experts."""
    tensors = load_file(directory / "model.safetensors")
    for name in packed:
        tensors.pop(name.removesuffix("_blocks"), None)
    save_file({**tensors, **packed}, directory / "model.safetensors", metadata={"format": "pt"})


def _forget_lengths(model: PreTrainedModel) -> None:
    """Dynamic rope in transformers keeps the base of the longest prompt so far; start anew."""
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)


def _publish(published_as: str, model: PreTrainedModel, directory: Path) -> None:
    path = directory / "config.json"
    config = json.loads(path.read_text())
    if published_as == "mxfp4":
        config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    if published_as.endswith("ForConditionalGeneration"):
        config = _with_vision(published_as, model, config, directory)
    if published_as in ("internlm2", "legacy", "yi"):
        _use_old_rope_keys(config)
    if published_as == "yi":
        config |= {"architectures": ["YiForCausalLM"], "model_type": "Yi"}
        rename_tensors(
            model, directory, {".input_layernorm.": ".ln1.", ".post_attention_layernorm.": ".ln2."}
        )
    if published_as == "internlm2":
        config |= {"architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2"}
        config |= {"bias": config.pop("attention_bias")}
        save_as_internlm2(model, directory)
    path.write_text(json.dumps(config, indent=1))


def _with_vision(
    architecture: str, model: PreTrainedModel, config: dict[str, Any], directory: Path
) -> dict[str, Any]:
    """The checkpoint as one of a model that sees as well, with the older rope keys; returns its config.json."""
    seen = {
        "vision_tower.vision_model.post_layernorm.weight": torch.ones(8),
        "multi_modal_projector.mm_input_projection_weight": torch.ones(8, 8),
    }
    rename_tensors(model, directory, OF_TEXT_PART, model.config.tie_word_embeddings, seen)
    rope = config.pop("rope_parameters")
    if "sliding_attention" in rope:
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    config |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    shared = {key: config.pop(key) for key in ("bos_token_id", "eos_token_id", "dtype")}
    return shared | {
        "architectures": [architecture],
        "model_type": architecture.removesuffix("ForConditionalGeneration").lower(),
        "text_config": config,
        "vision_config": {"hidden_size": 8, "model_type": "siglip_vision_model"},
    }


def _use_old_rope_keys(config: dict[str, Any]) -> None:
    """Write rotary parameters as transformers 4 did."""
    rope = config.pop("rope_parameters")
    config["torch_dtype"] = config.pop("dtype")
    config["rope_theta"] = rope.pop("rope_theta")
    rope_type = rope.pop("rope_type")
    config["rope_scaling"] = None if rope_type == "default" else {"type": rope_type, **rope}


def rename_tensors(
    model: PreTrainedModel,
    directory: Path,
    renamed: Mapping[str, str],
    leave_head: bool = False,
    more: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Writes the tensors under other names and with `more`, without the output matrix of tied embeddings."""
    tensors = dict(more or {})
    for name, tensor in model.state_dict().items():
        if leave_head and name == "lm_head.weight":
            continue
        for ours, theirs in renamed.items():
            name = name.replace(ours, theirs)
        tensors[name] = tensor.contiguous()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def save_as_internlm2(model: PreTrainedModel, directory: Path) -> None:
    """Pack q, k and v as InternLM2 does: per KV head its group's queries, then its key, then its value."""
    config = model.config
    num_kv_heads = config.num_key_value_heads
    names = {
        "embed_tokens": "tok_embeddings",
        "lm_head": "output",
        "self_attn.o_proj": "attention.wo",
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.up_proj": "feed_forward.w3",
        "mlp.down_proj": "feed_forward.w2",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    state = dict(model.state_dict())
    tensors = {}
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        for kind in ("weight", "bias") if config.attention_bias else ("weight",):
            q, k, v = (state.pop(f"{prefix}self_attn.{part}_proj.{kind}") for part in "qkv")
            heads = [part.reshape(num_kv_heads, -1, config.head_dim, *part.shape[1:]) for part in (q, k, v)]
            tensors[f"{prefix}attention.wqkv.{kind}"] = torch.cat(heads, dim=1).flatten(0, 2).contiguous()
    for name, tensor in state.items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        tensors[name] = tensor.contiguous()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
