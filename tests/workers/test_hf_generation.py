"""Sampling defaults of generation_config.json, as vLLM takes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moorage.workers.errors import InvalidModel
from moorage.workers.hf_generation import SamplingDefaults, read_sampling_defaults


def read(directory: Path, **values: Any) -> SamplingDefaults:
    (directory / "generation_config.json").write_text(json.dumps(values))
    return read_sampling_defaults(directory)


def test_without_a_file_or_a_field_sampling_is_greedy(tmp_path: Path) -> None:
    assert read_sampling_defaults(tmp_path) == SamplingDefaults(0.0, 0, 1.0, 0.0, 1.0)
    assert read(tmp_path, eos_token_id=2, temperature=None) == SamplingDefaults()


def test_every_field(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "temperature": 0.6,
        "top_k": 20,
        "top_p": 0.95,
        "min_p": 0.1,
        "repetition_penalty": 1.05,
    }
    assert read(tmp_path, do_sample=True, **values) == SamplingDefaults(**values)
    assert read(tmp_path, **values) == SamplingDefaults(**values)


def test_do_sample_decides_on_the_temperature(tmp_path: Path) -> None:
    assert read(tmp_path, do_sample=True).temperature == 1.0
    greedy = read(tmp_path, do_sample=False, temperature=0.6, repetition_penalty=1.1)
    assert (greedy.temperature, greedy.repetition_penalty) == (0.0, 1.1)


def test_minus_one_stands_for_every_token(tmp_path: Path) -> None:
    assert read(tmp_path, top_k=-1).top_k == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", "0.6"),
        ("temperature", 101),
        ("top_k", 1.5),
        ("top_k", True),
        ("top_k", 1 << 40),
        ("top_p", 0),
        ("top_p", 1.01),
        ("min_p", -1),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", float("inf")),
        ("do_sample", "yes"),
    ],
)
def test_a_value_that_no_request_may_have_names_file_and_field(
    tmp_path: Path, name: str, value: object
) -> None:
    with pytest.raises(InvalidModel, match=rf"generation_config\.json: {name} is .*must be") as caught:
        read(tmp_path, **{name: value})
    assert "\n" not in str(caught.value)
