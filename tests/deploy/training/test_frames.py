"""Wordings at random: a key before a value, a question that names the key, and hardly ever the same words."""

from __future__ import annotations

import re
from itertools import count

import pytest

from deploy.training.facts import keyed_facts
from deploy.training.frames import draw_frame
from tests.deploy.training.test_facts import SEEDS, phrases


@pytest.mark.parametrize("seed", SEEDS)
def test_the_key_stands_before_the_value_and_in_the_question(seed: int) -> None:
    frame = draw_frame(*phrases(seed))
    assert frame.statement.count("{k}") == frame.statement.count("{v}") == 1
    assert frame.statement.index("{k}") < frame.statement.index("{v}")
    assert "{k}" in frame.question + frame.lead
    assert "{v}" not in frame.question + frame.lead


@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_keys_that_are_alike_share_words(count: int) -> None:
    for seed in range(10):
        made, _ = phrases(seed)
        keys = made.alike(count)
        assert len(set(keys)) == len(keys) <= count
        assert keys
        words = {word for key in keys for word in re.split("[-_ ]", key)}
        assert len(words) <= 2 * len(keys)
        assert count < 5 or len(words) < 2 * len(keys)


def test_contexts_hardly_ever_share_a_wording() -> None:
    frames = [draw_frame(*phrases(seed)) for seed in SEEDS]
    assert len({frame.statement for frame in frames}) > 0.9 * len(frames)
    assert len({frame.question + frame.lead for frame in frames}) > 0.9 * len(frames)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_framed_fact_is_answered_by_the_statement_with_its_key(seed: int) -> None:
    made, rng = phrases(seed)
    numbers = count(100)
    made.key = lambda _form: f"Key{next(numbers)}"  # type: ignore[method-assign]
    made.value = lambda _kind: f"Value{next(numbers)}"  # type: ignore[method-assign]
    facts = keyed_facts(made, rng, 800, asking=4, framed=True)
    pairs = [re.findall(r"(?:Key|Value)\d+", statement) for statement in facts.statements]
    assert len(pairs) >= 2
    for question in facts.questions:
        (key,) = set(re.findall(r"Key\d+", question.text + question.lead))
        assert [key, question.value] in pairs
