"""Facts and records: the answer is the one that the statements give, found here without the code that made it."""

from __future__ import annotations

import re
from functools import partial
from itertools import count
from random import Random

import pytest

from deploy.training.facts import chain_facts, keyed_facts, several_values, single_fact
from deploy.training.phrases import Phrases
from deploy.training.records import records

WORDS = tuple(f"{a}{b}{c}" for a in ("pel", "tan", "mor") for b in ("i", "o", "a") for c in ("n", "st", "rk"))
SEEDS = range(60)


def phrases(seed: int) -> tuple[Phrases, Random]:
    rng = Random(seed)
    return Phrases(rng, WORDS), rng


@pytest.mark.parametrize("seed", SEEDS)
def test_a_single_fact_names_its_attribute_and_its_value(seed: int) -> None:
    facts = single_fact(*phrases(seed), 300)
    for question in facts.questions:
        stating = [statement for statement in facts.statements if question.value in statement]
        assert stating
        assert question.answer == f" {question.value}."


@pytest.mark.parametrize("seed", SEEDS)
def test_each_key_is_stated_once_with_the_value_that_is_the_answer(seed: int) -> None:
    facts = keyed_facts(*phrases(seed), 800)
    assert len(set(facts.statements)) == len(facts.statements)
    for question in facts.questions:
        for value in re.split(r", and | and |, ", question.value):
            assert sum(f" {value}" in f" {statement}" for statement in facts.statements) >= 1


@pytest.mark.parametrize("seed", SEEDS)
def test_forward_facts_name_the_key_before_its_value(seed: int) -> None:
    made, rng = phrases(seed)
    numbers = count()
    made.key = lambda _form: f"Key{next(numbers)}"  # type: ignore[method-assign]
    made.value = lambda _kind: f"Value{next(numbers)}"  # type: ignore[method-assign]
    for statement in keyed_facts(made, rng, 800, asking=5, forward=True).statements:
        assert statement.index("Key") < statement.index("Value")


@pytest.mark.parametrize("seed", SEEDS)
def test_several_values_are_asked_for_in_the_order_of_the_text(seed: int) -> None:
    facts = several_values(*phrases(seed), 500)
    text = "".join(facts.statements)
    assert facts.in_order
    for question in facts.questions:
        values = re.split(r", and | and |, ", question.value)
        assert 2 <= len(values) <= 4
        places = [text.index(value) for value in values]
        assert len(set(values)) == len(values)
        if all(text.count(value) == 1 for value in values):
            assert places == sorted(places)


@pytest.mark.parametrize("seed", SEEDS)
def test_chains_lead_to_the_value_that_is_the_answer(seed: int) -> None:
    facts = chain_facts(*phrases(seed), 800)
    holds: dict[str, str] = {}
    for statement in facts.statements:
        name, source = re.findall(r"\b(?:[A-Z]{3,5}|\d{4,6})\b", statement)
        holds[name] = source if source.isdigit() else holds[source]
    for question in facts.questions:
        if question.value.isdigit():
            (asked,) = re.findall(r"\b[A-Z]{3,5}\b", question.text)
            assert holds[asked] == question.value
        else:
            (number,) = re.findall(r"\d+", question.text)
            assert [name for name in holds if holds[name] == number] == question.value.split()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("room", [150, 2000])
def test_a_record_that_is_asked_for_is_in_the_list(seed: int, room: int) -> None:
    made = records(*phrases(seed), room, len)
    if made is None:
        assert room == 150
        return
    for question in made.questions:
        assert question.value in made.text
        assert question.value in question.answer


def test_more_can_be_asked_for() -> None:
    """Three times as many questions, about other keys each time."""
    counts = {1: 0, 3: 0}
    for seed in SEEDS:
        for asking in counts:
            made = records(*phrases(seed), 2000, len, asking)
            assert made is not None
            texts = [question.text + question.lead + question.answer for question in made.questions]
            assert len(set(texts)) == len(texts)
            counts[asking] += len(texts)
    assert counts[3] > 2 * counts[1]


def test_no_list_fits_into_nothing() -> None:
    assert records(*phrases(0), 10, len) is None


def test_names_of_the_evaluation_are_not_trained_on() -> None:
    for seed in SEEDS:
        framed = partial(keyed_facts, framed=True)
        for make in (single_fact, keyed_facts, framed, several_values):
            facts = make(*phrases(seed), 600)
            text = " ".join(
                [*facts.statements, facts.preamble, *(q.text + q.lead for q in facts.questions)]
            ).lower()
            for phrase in ("pass key", "magic number", "grass is green", "provided text"):
                assert phrase not in text
