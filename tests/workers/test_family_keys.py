"""Every key of transformers' configuration classes changes what is read, is refused, or is listed without effect."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import CONFIG_MAPPING

from moorage.workers.errors import InvalidModel
from moorage.workers.gpu.model.families import FAMILIES
from moorage.workers.gpu.model.family import Family
from moorage.workers.hf_config import read_spec
from moorage.workers.hf_fields import Fields
from moorage.workers.hf_keys import WITHOUT_EFFECT
from moorage.workers.spec import ModelSpec

WITHOUT = frozenset[str]().union(*WITHOUT_EFFECT.values())
SAY_NOTHING_ALONE = {
    "original_max_position_embeddings": "without a scaling",
    "use_sliding_window": "without a window",
    "no_rope_layer_interval": "beside no_rope_layers",
}
"""Keys that the default configuration has no use for."""
NAMES = sorted(FAMILIES.keys() & CONFIG_MAPPING.keys())
"""Families that transformers has, which is all but InternLM2."""


def read(config: dict[str, Any], family: Family) -> ModelSpec | None:
    """None where the configuration is refused."""
    try:
        return read_spec(Fields(config, "config.json"), family)
    except InvalidModel:
        return None


def other(value: object) -> object:
    """A value of the same type that means something else."""
    match value:
        case bool():
            return not value
        case int():
            return value + 2
        case float():
            return value * 1.5 + 0.25
        case str():
            return f"other_{value}"
        case dict():
            return {**value, "rope_type": "linear", "factor": 3.0}
        case list():
            return [*value[:-1], "other"]
        case _:
            return 16


def default(name: str) -> dict[str, Any]:
    """The keys that transformers would write for a model of the family, or for its text part."""
    return dict(CONFIG_MAPPING[name]().get_text_config().to_dict())


@pytest.mark.parametrize("name", NAMES)
def test_the_configuration_of_transformers_is_read_whole(name: str) -> None:
    assert read_spec(Fields(default(name), "config.json"), FAMILIES[name]).family == name


@pytest.mark.parametrize("name", NAMES)
def test_no_key_that_matters_is_overlooked(name: str) -> None:
    family, config = FAMILIES[name], default(name)
    base = read(config, family)
    assert base is not None
    overlooked = [
        key
        for key, value in config.items()
        if key not in WITHOUT
        and key not in family.ignored
        and key not in SAY_NOTHING_ALONE
        and not key.startswith("_")
        and read({**config, key: other(value)}, family) == base
    ]
    assert overlooked == []
