"""Kinds of models that cannot be served, by what config.json names and has; as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moorage.workers.hf_fields import Fields


@dataclass(frozen=True, slots=True)
class Unsupported:
    """A kind of model that the decoder does not compute."""

    what: str
    """What such a model has, for messages."""
    names: tuple[str, ...] = ()
    """What the names of its classes, or its `model_type`, begin with: in lower case, without underscores."""
    endings: tuple[str, ...] = ()
    """What the names of its classes end with."""
    keys: tuple[str, ...] = ()
    """Keys of which only such models have any, other than null, false and 0."""


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


UNSUPPORTED: tuple[Unsupported, ...] = (
    Unsupported(
        "it reads images or sounds beside text",
        _names("llava qwen2vl qwen25vl qwen3vl qwen2audio internvl mllama llama4 paligemma idefics phi4mm"),
        keys=_names("vision_config audio_config vision_tower mm_vision_tower thinker_config embd_layer"),
    ),
    Unsupported(
        "it has an encoder beside the decoder",
        _names(
            "t5 mt5 umt5 bart mbart pegasus m2m100 whisper marian encoderdecoder blenderbot switchtransformers"
        ),
        keys=_names("is_encoder_decoder encoder_layers"),
    ),
    Unsupported(
        "some or all of its layers have linear attention or a state space in place of a KV cache",
        _names(
            "qwen3next qwen35 jamba mamba falconmamba falconh1 rwkv minimaxtext01 minimaxm1 minimaxfor nemotronh "
            "granitemoehybrid bamba zamba recurrentgemma lfm2 kimilinear olmohybrid bailinghybrid xlstm plamo2 "
            "hymba phi4flash retnet"
        ),
        keys=_names(
            "linear_num_key_heads linear_conv_kernel_dim attn_layer_period mamba_d_state mamba_num_heads ssm_cfg "
            "mamba_expand attn_type_list linear_attn_config conv_L_cache"
        ),
    ),
    Unsupported(
        "it has multi-head latent attention (MLA)",
        _names(
            "deepseekv2 deepseekv3 deepseekv4 kimik2 minicpm3 glm4moelite glmmoedsa longcatflash youtu plm"
        ),
        keys=_names("kv_lora_rank"),
    ),
    Unsupported(
        "its positions are biases of attention (ALiBi)",
        _names("mpt bloom jais"),
        keys=_names("alibi use_alibi"),
    ),
    Unsupported(
        "its positions are learned vectors", _names("gpt2 opt gptbigcode gptneofor xglm ctrl biogpt")
    ),
    Unsupported(
        "its feed-forward part has no gate",
        _names("gptneox gptj codegen phifor falconfor starcoder2 nemotronfor persimmon arcee"),
    ),
    Unsupported(
        "it generates no text",
        _names("bert roberta xlmroberta deberta electra modernbert"),
        endings=("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForRewardModel"),
    ),
)
"""The kinds in the order in which they are looked for."""


def unsupported(config: Fields, architectures: Sequence[str]) -> str | None:
    """What makes a model of unknown `architectures` one that cannot be served; None where that is not known."""
    model_type = str(config.get("model_type") or "")
    names = [name.lower().replace("_", "") for name in (*architectures, model_type)]
    for kind in UNSUPPORTED:
        if any(name.startswith(kind.names) for name in names):
            return kind.what
        if any(name.endswith(kind.endings) for name in architectures):
            return kind.what
    return next((kind.what for kind in UNSUPPORTED if any(config.get(key) for key in kind.keys)), None)
