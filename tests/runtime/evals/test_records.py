"""Many facts: every record stands in the text once and in order, and the score is the share that is listed."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

import pytest

from moorage.client import Client
from moorage.runtime.evals.haystack import text_haystack
from moorage.runtime.evals.intervals import wilson
from moorage.runtime.evals.records import Records, records_task
from moorage.runtime.evals.runner import Summary, run
from moorage.runtime.evals.targets import ServerTargets
from moorage.runtime.evals.tasks import Suite
from tests.answering_engine import AnsweringEngine
from tests.toy_server import toy_server


@pytest.fixture(scope="module")
def engine() -> AnsweringEngine:
    return AnsweringEngine()


@pytest.fixture(scope="module")
def targets(engine: AnsweringEngine) -> Iterator[ServerTargets]:
    with toy_server(engine=engine) as running, Client(running.address) as client:
        yield ServerTargets(client)


def listed(prompt: str) -> list[str]:
    """All records of a prompt's text."""
    return re.findall(r"^Record \d+: the code of \S+ is \d+\.$", prompt, re.M)


def measure(targets: ServerTargets) -> Summary:
    return run(Suite("records", (records_task(text_haystack(), (6_000,), 3, count=8),)), targets)


def test_records_stand_in_their_order_in_another_text_for_each_sample() -> None:
    haystack = text_haystack()
    make = Records(haystack, haystack.vocabulary(), 12)
    problems = [make(random.Random(seed), 600, 4096) for seed in range(3)]
    for problem in problems:
        found = listed(problem.document)
        assert [record.split(" is ")[1] for record in found] == [f"{code}." for code in problem.answers]
        assert [record.split(":")[0] for record in found] == [f"Record {number}" for number in range(1, 13)]
        assert len(set(problem.answers)) == 12
        assert problem.question.endswith("Record 1: the code of")
    assert len({problem.document.split("\n")[1] for problem in problems}) == 3


def test_a_reader_that_lists_all_is_right_and_one_that_lists_a_quarter_a_quarter(
    engine: AnsweringEngine, targets: ServerTargets
) -> None:
    engine.answer = lambda prompt: " ".join(record.split(" is ")[1] for record in listed(prompt))
    assert measure(targets).rows[0].value == 1
    engine.answer = lambda prompt: "\n".join(listed(prompt)[:2])
    row = measure(targets).rows[0]
    assert row.value == 0.25
    assert row.interval == wilson(0.25, 3)
    assert row.length == 6_000
