"""One table of names: keys of the file, words of other systems, and the settings that they name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moorage.runtime.config.errors import keys_of
from moorage.runtime.config.load import build_config
from moorage.runtime.config.names import KEYS, SETTINGS, WORDS, keys_of_setting
from moorage.runtime.config.presets import Preset
from moorage.runtime.config.reference import reference
from moorage.runtime.config.resolve import given, resolve_settings
from moorage.runtime.config.schema import ClusterConfig
from moorage.runtime.config.source import Source
from moorage.workers.errors import InvalidConfig
from moorage.workers.gpu.settings import EngineSettings


def built(**sections: dict[str, Any]) -> ClusterConfig:
    return build_config(Source(Path("cluster.yaml"), {"model": {"path": "m"}, **sections}))


def test_every_setting_is_a_key_with_what_its_declaration_says() -> None:
    fields = {f"{section}.{key}": field for section, key, field in keys_of(ClusterConfig)}
    for place, each in SETTINGS.items():
        assert fields[place].default == (None if each.declared.of_preset else each.default)
        said = str(fields[place].description)
        assert said.lower().endswith(each.declared.description.lower())
        assert said.startswith("The same as ") == (place != keys_of_setting(each.name)[0])


def test_every_word_of_another_system_leads_to_a_key() -> None:
    places = {f"{section}.{key}" for section, key, _ in keys_of(ClusterConfig)}
    assert {place for words in WORDS.values() for place in words.values()} <= places


def test_names_of_one_setting_that_differ_are_refused_and_equal_ones_are_taken() -> None:
    several = [name for name in set(KEYS.values()) if len(keys_of_setting(name)) > 1]
    assert several == ["topk"]
    same = built(memory={"topk": 3}, long_context={"second_select_num": 3})
    assert given(same)["topk"] == 3
    with pytest.raises(
        InvalidConfig, match=r"memory.topk: is 3 and long_context.second_select_num is 4, but"
    ):
        built(memory={"topk": 3}, long_context={"second_select_num": 4})


def test_what_the_engine_is_given_comes_from_both_sections_that_name_it() -> None:
    found = given(built(memory={"score_decay": 0.5}, gpu_workers={"score_on": "cpu"}), EngineSettings)
    assert (found["score_decay"], found["score_on"], found["cache_strategy"]) == (0.5, "cpu", "lru")


def test_a_setting_can_be_left_to_the_preset() -> None:
    config = built(memory={"preset": "inf-llm", "topk": 4})
    assert resolve_settings(config).memory.selection.topk == 4
    assert resolve_settings(config, without=("topk",)).memory.selection.topk == 16


def test_a_preset_may_name_only_what_a_preset_gives() -> None:
    with pytest.raises(ValueError, match="preset mine: topkk is no setting that a preset gives"):
        Preset("mine", "nothing", {"topkk": 3})
    with pytest.raises(ValueError, match="recall_every is no setting"):
        Preset("mine", "nothing", {"recall_every": 3})


def test_what_only_research_needs_stands_together_at_the_end_of_its_section() -> None:
    for section in ClusterConfig.model_fields:
        marks = [row.research for row in reference() if row.section == section]
        assert marks == sorted(marks)
    assert any(row.research for row in reference())
