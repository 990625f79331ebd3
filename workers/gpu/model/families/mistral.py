"""Mistral: a Llama without biases, whose layers attend a sliding window unless config.json takes it away."""

from __future__ import annotations

from moorage.workers.gpu.model.families.llama import TENSORS
from moorage.workers.gpu.model.family import Family, PublishedModel
from moorage.workers.hf_fields import Fields
from moorage.workers.hf_layers import read_layer_types, read_window, with_windows
from moorage.workers.spec import ModelSpec


def _own_keys(spec: ModelSpec, config: Fields) -> ModelSpec:
    slides = read_layer_types(config) or (True,) * spec.num_layers
    return with_windows(spec, config, slides, read_window(config, 4096))


FAMILY = Family(
    name="mistral",
    architectures=("MistralForCausalLM",),
    tensors=TENSORS,
    own_keys=_own_keys,
    published={
        "mistral-7b": PublishedModel(32, 4096, 14336, 32, 8, 32000, 32768, {"sliding_window": None}),
    },
)
