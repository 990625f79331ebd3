"""RULER's tasks: what their prompts hold, with a reader that solves each of them from its text alone."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moorage.client import Client
from moorage.runtime.evals.asking import fit
from moorage.runtime.evals.haystack import GARBAGE, text_haystack
from moorage.runtime.evals.intervals import wilson
from moorage.runtime.evals.ruler import FREE_TASKS, ruler_tasks
from moorage.runtime.evals.ruler.chains import Chains
from moorage.runtime.evals.runner import Summary, run
from moorage.runtime.evals.targets import ServerTargets
from moorage.runtime.evals.tasks import Suite
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


def measure(
    name: str, targets: ServerTargets, lengths: tuple[int, ...] = (12_000,), samples: int = 2, **files: Path
) -> Summary:
    tasks = ruler_tasks([name], text_haystack(), lengths, samples, 0, files)
    return run(Suite("ruler", tasks), targets)


def solve(prompt: str) -> str:
    """Reads the question and finds its answer, whichever task it is."""
    if "special magic" in prompt:
        keys = re.split(r",? and |, ", re.findall(r"special magic \w+ for (.*?) mentioned", prompt)[-1])
        return " ".join(
            value for key in keys for value in re.findall(rf"for {re.escape(key)} is: ([\w-]+)\.", prompt)
        )
    if "variable assignment" in prompt:
        last = prompt[prompt.rindex("Memorize and track") :]
        names = re.findall(r"VAR (\w+) = \d+", last)
        for name, before in re.findall(r"VAR (\w+) = VAR (\w+)", last):
            assert before == names[-1]
            names.append(name)
        return " ".join(names)
    if "numbered list" in prompt:
        last = prompt[prompt.rindex("Memorize the ones") :]
        words = Counter(re.findall(r"\d+\. (\S+)", last[: last.index("Question:")]))
        return " ".join(word for word, _ in words.most_common(10))
    words = Counter(prompt[prompt.index("coded words. ") + 13 : prompt.index("\nQuestion")].split())
    del words["..."]
    return " ".join(word for word, _ in words.most_common(3))


@pytest.mark.parametrize("name", FREE_TASKS)
def test_a_reader_solves_every_task(engine: AnsweringEngine, targets: ServerTargets, name: str) -> None:
    engine.answer = solve
    summary = measure(name, targets)
    answers = [record.outcome.answers for record in summary.records]
    wanted = {"niah_multivalue": 4, "niah_multiquery": 4, "vt": 5, "cwe": 10, "fwe": 3}.get(name, 1)
    assert {len(set(own)) for own in answers} == {wanted}
    assert len(set(answers)) == 2
    longest = max(len(" ".join(own)) for own in answers)
    assert summary.rows[0].value == 1 or longest > 128  # four UUIDs would not fit RULER's answer
    for record in summary.records:
        assert record.outcome.prompt_tokens <= 12_000 - 30


@pytest.mark.parametrize("name", FREE_TASKS)
def test_prompts_fill_their_length(engine: AnsweringEngine, targets: ServerTargets, name: str) -> None:
    engine.answer = lambda _prompt: ""
    summary = measure(name, targets, (16_000, 40_000), samples=1)
    for record in summary.records:
        asked = engine.seen[summary.records.index(record) - 2]
        assert isinstance(asked, GenerateParams)
        assert record.key.place.length is not None
        room = record.key.place.length - asked.max_new_tokens
        assert 0.9 * room <= record.outcome.prompt_tokens <= room


def test_the_score_is_the_share_of_answers(engine: AnsweringEngine, targets: ServerTargets) -> None:
    engine.answer = lambda prompt: solve(prompt).split()[0]
    row = measure("niah_multivalue", targets).rows[0]
    assert row.value == 0.25
    assert row.as_json()["interval"] == list(wilson(0.25, row.samples))
    assert measure("vt", targets).rows[0].value == 0.2
    engine.answer = lambda _prompt: ""
    assert measure("niah_single_2", targets).rows[0].value == 0


def test_every_sample_hides_its_needle_in_another_text(
    engine: AnsweringEngine, targets: ServerTargets
) -> None:
    engine.answer = lambda _prompt: ""
    measure("niah_single_2", targets, (4_000,), samples=4)
    prompts = [engine.tokenizer.decode(asked.prompt) for asked in engine.seen[-4:]]
    assert len({prompt.split("afterwards.\n")[1][:80] for prompt in prompts}) == 4


@pytest.mark.parametrize("maker", [Chains(), Chains(text_haystack())])
def test_a_chain_is_followed_in_noise_and_in_a_text(maker: Chains) -> None:
    problem = maker(random.Random(3), 40, 4096)
    assert solve(problem.text).split() == list(problem.answers)
    assert problem.question.startswith("\nQuestion: Find all variables")
    assert (GARBAGE in problem.document.split("they are:")[1]) is (maker.haystack is None)


def squad() -> dict[str, Any]:
    paragraphs = [
        {
            "context": f"In the year {1800 + n} the town {n} was founded.",
            "qas": [
                {
                    "question": f"When was the town {n} founded?",
                    "answers": [{"text": str(1800 + n)}, {"text": f"in {1800 + n}"}],
                    "is_impossible": False,
                },
                {"question": "Why?", "answers": [], "is_impossible": True},
            ],
        }
        for n in range(50)
    ]
    return {"data": [{"paragraphs": paragraphs}]}


def hotpotqa() -> list[Any]:
    return [
        {
            "question": f"Who wrote book {n}?",
            "answer": f"Author {n}",
            "context": [
                [f"Book {n}", ["It is a book. ", f"Author {n} wrote it."]],
                [f"Film {n}", ["A film."]],
            ],
        }
        for n in range(30)
    ]


@pytest.mark.parametrize(("name", "data"), [("qa_1", squad()), ("qa_2", hotpotqa())])
def test_questions_from_a_local_file(
    engine: AnsweringEngine, targets: ServerTargets, tmp_path: Path, name: str, data: object
) -> None:
    path = tmp_path / "data.json"
    path.write_text(json.dumps(data))

    def answer(prompt: str) -> str:
        question = prompt[prompt.rindex("Question: ") :]
        number = re.findall(r"\d+", question)[0]
        form = rf"year (\d+) the town {number} was" if name == "qa_1" else rf"(Author {number}) wrote"
        found = re.findall(form, prompt)
        assert len(found) == 1
        return f" {found[0]}."

    engine.answer = answer
    summary = measure(name, targets, (1500,), **{name: path})
    assert summary.rows[0].value == 1
    assert 700 < summary.records[0].outcome.prompt_tokens <= 1500 - 32


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file"),
        ("{", r"data\.json:1: is not JSON"),
        ("[]", "data: is missing"),
        ('{"data": 1}', "data: should be a list"),
        ('{"data": [{"paragraphs": [{"qas": []}]}]}', r"data\[0\]\.paragraphs\[0\]\.context: is missing"),
        (
            '{"data": [{"paragraphs": [{"context": "x", "qas": [{"question": 1, "answers": []}]}]}]}',
            r"qas\[0\]\.question: should be text",
        ),
        ('{"data": []}', "no questions"),
    ],
)
def test_a_file_of_another_form_is_named(tmp_path: Path, content: str | None, words: str) -> None:
    path = tmp_path / "data.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InvalidRequest, match=words):
        ruler_tasks(["qa_1"], text_haystack(), (4096,), 1, 0, {"qa_1": path})


@pytest.mark.parametrize(
    ("name", "words"), [("niah", "no such task of RULER"), ("qa_1", "--qa-file qa_1=FILE")]
)
def test_unknown_tasks_and_missing_files_are_refused(name: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        ruler_tasks([name], text_haystack(), (4096,), 1, 0, {})


def test_too_short_a_length_names_the_task(targets: ServerTargets) -> None:
    with pytest.raises(InvalidRequest, match="cwe: lengths: too short by"):
        measure("cwe", targets, (600,))


@pytest.mark.parametrize("room", [0, 10, 11, 19, 20, 999, 100_000])
@pytest.mark.parametrize("guess", [0, 1, 7, 50_000])
def test_fit_finds_the_most_units(room: int, guess: int) -> None:
    """Ten tokens for one unit, three more for each other."""
    if room < 10:
        with pytest.raises(InvalidRequest, match="too short by 10"):
            fit(lambda n: 7 + 3 * n, room, 1, guess)
    else:
        assert fit(lambda n: 7 + 3 * n, room, 1, guess) == (room - 7) // 3


def test_fit_copes_with_units_of_several_sizes() -> None:
    sizes = [0]
    for unit in range(5000):
        sizes.append(sizes[-1] + 1 + unit * unit % 17)
    for room in (20, 500, 5000, 30_000):
        found = fit(lambda n: sizes[n], room, 1, 4999)
        assert sizes[found] <= room
        assert sizes[found] > room - max(40, room // 20)
