"""Needles and keyed values: exact lengths, the right answer in the text once, and a perfect reader's full marks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from moorage.client import Client
from moorage.runtime.evals.haystack import Haystack, garbage_haystack, text_haystack
from moorage.runtime.evals.key_values import Form, KeyValues
from moorage.runtime.evals.needle import Form as NeedleForm
from moorage.runtime.evals.needle import Needle
from moorage.runtime.evals.runner import Summary, run
from moorage.runtime.evals.targets import ServerTargets
from moorage.runtime.evals.tasks import Suite, Task
from moorage.runtime.serving.protocol import GenerateParams
from moorage.workers.errors import InvalidRequest
from tests.answering_engine import AnsweringEngine
from tests.toy_server import toy_server


@pytest.fixture(scope="module")
def engine() -> AnsweringEngine:
    return AnsweringEngine()


@pytest.fixture(scope="module")
def targets(engine: AnsweringEngine) -> Iterator[ServerTargets]:
    with toy_server(engine=engine) as running, Client(running.address) as client:
        yield ServerTargets(client)


@pytest.fixture(scope="module")
def haystack() -> Haystack:
    return text_haystack()


def measure(task: Task, targets: ServerTargets) -> Summary:
    return run(Suite(task.name, (task,)), targets)


def find_needle(prompt: str) -> str:
    key = re.findall(r"number for (\S+) mentioned", prompt)[-1]
    values = re.findall(rf"numbers for {re.escape(key)} is: (\d+)\.", prompt)
    assert len(values) == 1
    return f" {values[0]}."


def find_value(prompt: str) -> str:
    pairs = json.loads(prompt[prompt.index("{") : prompt.rindex("}") + 1])
    value = pairs[re.findall(r'Key: "(.*?)"', prompt)[-1]]
    return f' "{value}"'


@pytest.mark.parametrize("needles", [1, 4])
def test_a_reader_finds_every_needle(
    engine: AnsweringEngine, targets: ServerTargets, haystack: Haystack, needles: int
) -> None:
    engine.answer = find_needle
    summary = measure(Needle(haystack, (1024, 2048), 3, seed=1, needles=needles), targets)
    assert [row.value for row in summary.rows] == [1, 1]
    assert len({record.outcome.answers for record in summary.records}) == 3
    for asked, record in zip(engine.seen[-6:], summary.records, strict=True):
        assert isinstance(asked, GenerateParams)
        assert len(asked.prompt) + asked.max_new_tokens == record.key.place.length


@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
def test_the_needle_lies_at_its_depth(
    engine: AnsweringEngine, targets: ServerTargets, haystack: Haystack, depth: float
) -> None:
    engine.answer = find_needle
    summary = measure(Needle(haystack, (4096,), 2, depths=(depth,), needles=3), targets)
    assert [(row.depth, row.value) for row in summary.rows] == [(depth, 1)]
    asked = engine.seen[-1]
    assert isinstance(asked, GenerateParams)
    text = engine.tokenizer.decode(asked.prompt)
    answer = summary.records[-1].outcome.answers[0]
    assert text.index(answer) / len(text) == pytest.approx(depth, abs=0.1)


def test_a_needle_of_lwm_stands_in_its_published_frame(
    engine: AnsweringEngine, targets: ServerTargets, haystack: Haystack
) -> None:
    prompts: list[str] = []

    def answer(prompt: str) -> str:
        prompts.append(prompt)
        city = re.findall(r"What is the special magic (.+?) number\?", prompt)[-1]
        (value,) = re.findall(rf"\nThe special magic {city} number is: (\d{{7}})\n", prompt)
        return f"The number is {value}."

    engine.answer = answer
    task = Needle(haystack, (2048,), 2, depths=(0.0, 0.5, 1.0), needles=3, form=NeedleForm.LWM)
    summary = measure(task, targets)
    assert [(row.depth, row.value) for row in summary.rows] == [(0.0, 1), (0.5, 1), (1.0, 1)]
    for prompt in prompts:
        assert "You are a helpful assistant. USER: " in prompt[:60]
        assert prompt.count("The special magic ") == 3
        assert prompt.endswith("Keep your response short and direct. ASSISTANT: ")


def test_an_lwm_answer_without_the_number_is_wrong(
    engine: AnsweringEngine, targets: ServerTargets, haystack: Haystack
) -> None:
    engine.answer = lambda _prompt: "The number is not in the document."
    assert measure(Needle(haystack, (1024,), 2, form=NeedleForm.LWM), targets).rows[0].value == 0
    with pytest.raises(InvalidRequest, match="needles: 50 in one text"):
        Needle(haystack, (1024,), 2, needles=50, form=NeedleForm.LWM)


def test_another_number_is_wrong(engine: AnsweringEngine, targets: ServerTargets, haystack: Haystack) -> None:
    engine.answer = lambda prompt: " " + re.findall(r"is: (\d+)\.", prompt)[0][:-1] + "x"
    assert measure(Needle(haystack, (1024,), 2), targets).rows[0].value == 0


@pytest.mark.parametrize("form", list(Form))
@pytest.mark.parametrize("length", [700, 4000])
def test_a_reader_finds_every_value(
    engine: AnsweringEngine, targets: ServerTargets, form: Form, length: int
) -> None:
    engine.answer = find_value
    summary = measure(KeyValues((length,), 4, seed=2, form=form), targets)
    assert summary.rows[0].value == 1
    each = len(f'"{summary.records[0].outcome.answers[0]}": ') * 2
    for record in summary.records:
        assert (
            length - each - form.answer_tokens - 8
            <= record.outcome.prompt_tokens
            <= length - form.answer_tokens
        )


def test_pairs_may_be_counted(engine: AnsweringEngine, targets: ServerTargets) -> None:
    counts: list[int] = []

    def answer(prompt: str) -> str:
        counts.append(prompt.count('": "'))
        return find_value(prompt)

    engine.answer = answer
    assert measure(KeyValues((2048,), 3, pairs=40), targets).rows[0].value == 1
    assert counts == [40] * 3
    with pytest.raises(InvalidRequest, match="can't hold 40 pairs"):
        measure(KeyValues((512,), 1, pairs=40), targets)


def test_the_asked_pair_lies_at_its_depth(engine: AnsweringEngine, targets: ServerTargets) -> None:
    places: list[float] = []

    def answer(prompt: str) -> str:
        value = find_value(prompt)
        places.append(prompt.index(value.strip()) / len(prompt))
        return value

    engine.answer = answer
    summary = measure(KeyValues((4096,), 2, depths=(0.0, 0.5, 1.0)), targets)
    assert [row.depth for row in summary.rows] == [0.0, 0.5, 1.0]
    assert max(places[:2]) < 0.1
    assert all(0.4 < place < 0.6 for place in places[2:4])
    assert min(places[4:]) > 0.9


def test_needles_of_one_text_are_asked_for_one_after_the_other(
    engine: AnsweringEngine, targets: ServerTargets, haystack: Haystack
) -> None:
    engine.answer = find_needle
    task = Needle(haystack, (2048,), 6, needles=3, one_text=True)
    summary = measure(task, targets)
    assert summary.rows[0].value == 1
    prompts = [engine.tokenizer.decode(asked.prompt) for asked in engine.seen[-6:] if asked.prompt]
    documents = [prompt[: prompt.rindex(" What is the special")] for prompt in prompts]
    assert documents[0] == documents[1] == documents[2] != documents[3] == documents[4] == documents[5]
    assert len({record.outcome.answers for record in summary.records}) == 6
    depths = [record.key.place.depth for record in summary.records]
    assert sorted(depths[:3]) == depths[:3]
    with pytest.raises(InvalidRequest, match="share a text"):
        Needle(haystack, (2048,), 6, depths=(0.5,), needles=3, one_text=True)


def test_pairs_of_one_object_are_asked_for_one_after_the_other(
    engine: AnsweringEngine, targets: ServerTargets
) -> None:
    engine.answer = find_value
    summary = measure(KeyValues((2048,), 4, one_text=True), targets)
    assert summary.rows[0].value == 1
    prompts = [engine.tokenizer.decode(asked.prompt) for asked in engine.seen[-4:] if asked.prompt]
    assert len({prompt[: prompt.rindex("}")] for prompt in prompts}) == 1
    assert len({record.outcome.answers for record in summary.records}) == 4
    assert max(record.outcome.prompt_tokens for record in summary.records) <= 2048 - Form.HEX.answer_tokens


def test_too_short_a_length_says_so(targets: ServerTargets, haystack: Haystack) -> None:
    with pytest.raises(InvalidRequest, match="at least"):
        measure(Needle(haystack, (100,), 1), targets)
    with pytest.raises(InvalidRequest, match="too short by"):
        measure(KeyValues((100,), 1), targets)


def test_needles_need_words(targets: ServerTargets) -> None:
    with pytest.raises(InvalidRequest, match="different words"):
        measure(Needle(garbage_haystack(), (1024,), 1), targets)
