"""Models that are sized by name, without their files: those that the families list as published."""

from __future__ import annotations

import os
from difflib import get_close_matches

from moorage.workers.errors import InvalidModel
from moorage.workers.gpu.model.families import FAMILIES
from moorage.workers.hf_config import read_model_spec, read_spec
from moorage.workers.hf_fields import Fields
from moorage.workers.spec import ModelSpec

MODEL_PRESETS = {
    name: read_spec(Fields(model.config(), name), family)
    for family in FAMILIES.values()
    for name, model in family.published.items()
}
"""Preset name -> shape. Of the rotary embedding no more than how far it reaches."""


def find_model(name_or_directory: str) -> ModelSpec:
    """The preset of that name (in any case), or the shape of a local Hugging Face directory or GGUF file.

    Raises InvalidModel when there is neither, or when the path is not a model directory.
    """
    preset = MODEL_PRESETS.get(name_or_directory.lower())
    exists = os.path.exists(name_or_directory)
    if preset is not None and not exists:
        return preset
    if exists:
        return read_model_spec(name_or_directory)
    if os.sep in name_or_directory:
        raise InvalidModel(f"{name_or_directory}: no such directory or model preset; check the path")
    near = get_close_matches(name_or_directory.lower(), MODEL_PRESETS, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise InvalidModel(
        f"{name_or_directory}: no such directory or model preset; {hint}presets: {', '.join(MODEL_PRESETS)}"
    )
