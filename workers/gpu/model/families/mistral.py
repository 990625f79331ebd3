"""Mistral: a Llama without biases, whose layers attend a sliding window unless config.json takes it away."""

from __future__ import annotations

from dataclasses import replace

from moorage.workers.gpu.model.families.llama import TENSORS
from moorage.workers.gpu.model.family import Family, PublishedModel, read_sliding_window
from moorage.workers.hf_fields import Fields
from moorage.workers.spec import ModelSpec


def _own_keys(spec: ModelSpec, config: Fields) -> ModelSpec:
    return replace(spec, sliding_window=read_sliding_window(config))


FAMILY = Family(
    name="mistral",
    architectures=("MistralForCausalLM",),
    tensors=TENSORS,
    own_keys=_own_keys,
    published={
        "mistral-7b": PublishedModel(32, 4096, 14336, 32, 8, 32000, 32768, {"sliding_window": None}),
    },
)
