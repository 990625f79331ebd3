"""Rows of the training: sizes, weights, and answers that stand in the prompt."""

from __future__ import annotations

from random import Random

import pytest

from deploy.training.prepare import Prepared
from deploy.training.tasks import ANSWER_WEIGHT, FILLER_WEIGHT, Maker, Sample
from deploy.training.tokenizer import BOS

KINDS = ("single", "keyed", "framed", "alike", "values", "chain", "records")
ALL_KINDS = ("text", "repeat", *KINDS)


def answers(prepared: Prepared, sample: Sample) -> list[tuple[str, str]]:
    """Each run of answer tokens as text, with the text before it."""
    found, begin = [], None
    for place, weight in enumerate([*sample.weights, 0.0]):
        if weight == ANSWER_WEIGHT and begin is None:
            begin = place
        elif weight != ANSWER_WEIGHT and begin is not None:
            parts = sample.ids[:begin], sample.ids[begin:place]
            before, answer = (prepared.tokenizer.decode(ids, skip_special_tokens=True) for ids in parts)
            found.append((before, answer))
            begin = None
    return found


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("room", [40, 129, 513, 2049])
def test_a_sample_fits_its_room(prepared: Prepared, kind: str, room: int) -> None:
    for seed in range(12):
        sample = Maker(prepared, Random(seed)).sample(kind, room)
        if sample is None:
            assert kind in KINDS
            assert room < 513
            continue
        assert len(sample.ids) == len(sample.weights) <= room
        assert min(sample.ids) >= 0
        assert max(sample.ids) < prepared.tokenizer.get_vocab_size()
        assert set(sample.weights) <= {0.0, FILLER_WEIGHT, 1.0, 2.0, ANSWER_WEIGHT}


@pytest.mark.parametrize("kind", KINDS)
def test_every_answer_stands_in_the_text_before_it(prepared: Prepared, kind: str) -> None:
    asked = 0
    for seed in range(40):
        sample = Maker(prepared, Random(seed)).sample(kind, 700)
        assert sample is not None
        found = answers(prepared, sample)
        assert found, "a task without an answer"
        for before, answer in found:
            asked += 1
            for value in parts_of(answer):
                assert value in before, (value, answer)
    assert asked >= 40


def parts_of(answer: str) -> list[str]:
    """The values of an answer without what joins and ends them."""
    joined = answer.replace(", and ", " ").replace(" and ", " ").replace(", ", " ").strip()
    return [part for part in joined.strip("|\"' ").rstrip(".").split() if part]


@pytest.mark.parametrize("kind", KINDS)
def test_facts_are_never_answers_before_they_are_asked(prepared: Prepared, kind: str) -> None:
    """The statement itself has filler weight: an answer that the text does not hold yet can't be learnt."""
    for seed in range(20):
        sample = Maker(prepared, Random(seed)).sample(kind, 400)
        assert sample is not None
        first = sample.weights.index(ANSWER_WEIGHT)
        assert first > 10
        assert ANSWER_WEIGHT not in sample.weights[:first]


@pytest.mark.parametrize("num_tokens", [1, 39, 40, 41, 257, 2049])
def test_a_row_has_exactly_its_tokens(prepared: Prepared, num_tokens: int) -> None:
    mix = dict.fromkeys(ALL_KINDS, 1.0)
    for seed in range(5):
        row = Maker(prepared, Random(seed)).row(num_tokens, mix)
        assert len(row.ids) == len(row.weights) == num_tokens


def test_the_beginning_of_text_is_never_predicted(prepared: Prepared) -> None:
    bos = prepared.tokenizer.token_to_id(BOS)
    row = Maker(prepared, Random(3)).row(2049, {"text": 1.0, "keyed": 1.0})
    weights = {weight for token, weight in zip(row.ids, row.weights, strict=True) if token == bos}
    assert weights == {0.0}


def test_a_repetition_weighs_more_the_second_time(prepared: Prepared) -> None:
    sample = Maker(prepared, Random(1)).sample("repeat", 101)
    assert sample is not None
    body = [(token, weight) for token, weight in zip(sample.ids, sample.weights, strict=True) if weight]
    first = [token for token, weight in body if weight == FILLER_WEIGHT]
    again = [token for token, weight in body if weight == 2.0]
    assert again[: len(first)] == first[: len(again)]


def test_rows_depend_on_the_seed_alone(prepared: Prepared) -> None:
    mix = dict.fromkeys(ALL_KINDS, 1.0)
    rows = [Maker(prepared, Random(seed)).row(513, mix).ids for seed in (7, 7, 8)]
    assert rows[0] == rows[1]
    assert rows[0] != rows[2]
