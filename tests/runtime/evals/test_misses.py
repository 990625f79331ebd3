"""Oracles are asked the very prompts that were missed, against a real server with a reading engine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from moorage.client import Client
from moorage.runtime.evals.haystack import garbage_haystack
from moorage.runtime.evals.misses import Oracle, explain_misses
from moorage.runtime.evals.passkey import Passkey, Style
from moorage.runtime.evals.runner import run
from moorage.runtime.evals.targets import ServerTargets
from moorage.runtime.evals.tasks import Suite
from tests.reading_engine import ReadingEngine
from tests.toy_server import toy_server


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with toy_server(engine=ReadingEngine()) as running:
        yield running.address


def test_misses_are_asked_of_every_oracle(address: str) -> None:
    task = Passkey(garbage_haystack(), Style.GARBAGE, (1024,), 4)
    with Client(address) as client:
        summary = run(Suite("passkey", (task,)), ServerTargets(client))
        oracles = [Oracle("keen", ServerTargets(client, ["keen"])), Oracle("same", ServerTargets(client))]
        misses = explain_misses(task, summary.records, oracles)
    assert [record.outcome.score for record in summary.records] == [0, 0, 0, 1]
    assert [miss.found_by for miss in misses] == [{"keen": True, "same": False}] * 3
    assert misses[0].as_json()["output"].strip() == "unknown"
    assert misses[0].as_json()["length"] == 1024


def test_no_miss_asks_no_oracle(address: str) -> None:
    task = Passkey(garbage_haystack(), Style.GARBAGE, (1024,), 4)
    with Client(address) as client:
        targets = ServerTargets(client, ["keen"])
        summary = run(Suite("passkey", (task,)), targets)
        assert explain_misses(task, summary.records, [Oracle("keen", targets)]) == []
