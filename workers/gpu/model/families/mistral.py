"""Mistral: a Llama without biases, whose layers attend a sliding window unless config.json takes it away.

Of Mistral Small 3.1 and later ones, which see as well, the text part is served.
"""

from __future__ import annotations

from moorage.workers.gpu.model.families.llama import TENSORS
from moorage.workers.gpu.model.family import VISION, Family, PublishedModel
from moorage.workers.hf_fields import Fields
from moorage.workers.hf_layers import read_layer_types, read_window, with_windows
from moorage.workers.spec import ModelSpec


def _own_keys(spec: ModelSpec, config: Fields) -> ModelSpec:
    slides = read_layer_types(config) or (True,) * spec.num_layers
    return with_windows(spec, config, slides, read_window(config, 4096))


FAMILY = Family(
    name="mistral",
    architectures=("MistralForCausalLM", "Mistral3ForConditionalGeneration"),
    model_types=("mistral3",),
    tensors=TENSORS,
    other_tensors=TENSORS.of_text_part(),
    text_config="text_config",
    other_modalities=VISION,
    own_keys=_own_keys,
    published={
        "mistral-7b": PublishedModel(32, 4096, 14336, 32, 8, 32000, 32768, {"sliding_window": None}),
    },
)
