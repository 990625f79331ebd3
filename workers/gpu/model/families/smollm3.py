"""SmolLM3: a Llama of which every fourth layer attends without positions."""

from __future__ import annotations

from dataclasses import replace

from moorage.workers.gpu.model.families.llama import TENSORS
from moorage.workers.gpu.model.family import Family, PublishedModel
from moorage.workers.hf_fields import Fields
from moorage.workers.hf_keys import UNUSED_WINDOW
from moorage.workers.hf_layers import read_layer_types, read_window, with_rotation, with_windows
from moorage.workers.spec import ModelSpec


def _rotates(config: Fields, num_layers: int) -> tuple[bool, ...]:
    """Whether each layer rotates: `no_rope_layers` has 1 for those that do. Raises InvalidModel."""
    every = config.positive_int("no_rope_layer_interval", 4)
    marks = config.get("no_rope_layers")
    if marks is None:
        return tuple((layer + 1) % every != 0 for layer in range(num_layers))
    if not isinstance(marks, list) or len(marks) != num_layers or any(mark not in (0, 1) for mark in marks):
        raise config.wrong(
            "no_rope_layers", f"{num_layers} numbers, 1 for each layer that rotates and 0 for others"
        )
    return tuple(mark == 1 for mark in marks)


def _own_keys(spec: ModelSpec, config: Fields) -> ModelSpec:
    attention, rotates = config.flag("attention_bias"), _rotates(config, spec.num_layers)
    spec = with_rotation(spec, rotates)
    spec = replace(spec, qkv_bias=attention, output_bias=attention, mlp_bias=config.flag("mlp_bias"))
    if not config.flag("use_sliding_window"):
        return spec
    slides = read_layer_types(config) or tuple(not rotated for rotated in rotates)
    return with_windows(spec, config, slides, read_window(config, None))


FAMILY = Family(
    name="smollm3",
    architectures=("SmolLM3ForCausalLM",),
    tensors=replace(TENSORS, older_names={}),
    own_keys=_own_keys,
    ignored=UNUSED_WINDOW,
    defaults={"tie_word_embeddings": True, "rope_theta": 2000000.0},
    published={
        "smollm3-3b": PublishedModel(36, 2048, 11008, 16, 4, 128256, 65536, {"rope_theta": 5000000.0}),
    },
)
