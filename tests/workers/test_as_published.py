"""Published configurations with all the keys that their authors left in them: every one is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moorage.workers.errors import InvalidModel
from moorage.workers.hf_config import ARCHITECTURES, read_model_spec

LINES = Path(__file__).with_name("as_published.jsonl").read_text().splitlines()
CONFIGS: dict[str, dict[str, Any]] = {line["name"]: line["config"] for line in map(json.loads, LINES)}
"""By the name of the model on the hub."""


@pytest.mark.parametrize("name", CONFIGS)
def test_a_published_configuration_is_read(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    spec = read_model_spec(tmp_path)
    assert spec.family == ARCHITECTURES[config["architectures"][0]]
    shape = (spec.num_layers, spec.hidden_size, spec.num_heads, spec.vocab_size)
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")
    assert shape == tuple(config[name] for name in names)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_same_with_one_key_that_nobody_knows_is_refused(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name] | {"frobnicate_attention": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidModel, match="frobnicate_attention is 2, which is not known"):
        read_model_spec(tmp_path)


def test_they_are_of_many_families() -> None:
    assert len({ARCHITECTURES[config["architectures"][0]] for config in CONFIGS.values()}) >= 12
