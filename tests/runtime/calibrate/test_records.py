"""Windows of records hold every record twice, or as much of that as they have room for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from moorage.runtime.calibrate.records import record_windows
from moorage.runtime.text.tokenizer import TextTokenizer

MODEL = Path(__file__).resolve().parents[3] / "deploy" / "models" / "moorage-ref"
WINDOW = 512


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer.load(MODEL)


def test_values_stand_for_a_second_time(tokenizer: TextTokenizer) -> None:
    windows = record_windows(tokenizer, 6, WINDOW)
    assert [len(ids) for ids in windows] == [WINDOW] * 6
    for ids in windows:
        half = tokenizer.decode(ids[: WINDOW // 2]), tokenizer.decode(ids[WINDOW // 2 :])
        first, second = (set(re.findall(r"\b[0-9a-f]{7,8}\b", text)) for text in half)
        assert len(first) >= 4
        assert len(first & second) >= len(second) / 2


def test_they_are_the_same_each_time_and_differ_from_each_other(tokenizer: TextTokenizer) -> None:
    windows = record_windows(tokenizer, 6, WINDOW)
    assert windows == record_windows(tokenizer, 6, WINDOW)
    assert len({tuple(ids) for ids in windows}) == 6


def test_none_are_made_where_none_are_asked_for(tokenizer: TextTokenizer) -> None:
    assert record_windows(tokenizer, 0, WINDOW) == []
