"""The sampling that a GGUF file recommends."""

from __future__ import annotations

from moorage.workers.gguf.decimals import as_decimal
from moorage.workers.gguf.model import GgufModel
from moorage.workers.hf_fields import Fields

_SAMPLING = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_k": "top_k",
    "general.sampling.top_p": "top_p",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repetition_penalty",
}


def sampling_of(model: GgufModel) -> Fields:
    """The sampling that the file recommends, as generation_config.json would have it."""
    found = {name: model.values[key] for key, name in _SAMPLING.items() if key in model.values}
    numbers = {name: as_decimal(value) for name, value in found.items() if isinstance(value, float)}
    return Fields(found | numbers, str(model.file))
