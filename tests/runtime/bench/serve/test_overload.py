"""`runtime bench overload`: what it offers a server, and what it says of what came back."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moorage.client import AsyncClient, ClusterStatus, FailedPrecondition
from moorage.runtime.bench.serve.figures import Spread
from moorage.runtime.bench.serve.overload import OverloadFigures, OverloadPlan, run_overload
from moorage.runtime.serving.protocol import Event, GenerateParams
from moorage.workers.errors import ResourceExhausted
from tests.runtime.bench.serve.command import run_bench
from tests.toy_engine import ToyEngine
from tests.toy_server import toy_server

TEXT = tuple(range(3, 200))


class NarrowEngine(ToyEngine):
    """Answers one request at a time and refuses all others; each token takes 5 ms."""

    def __init__(self) -> None:
        super().__init__(step_s=0.005)
        self.running = 0

    def generate(self, params: GenerateParams) -> AsyncGenerator[Event]:
        if self.running:
            raise ResourceExhausted("one request runs", retry_after_s=0.1)
        self.running += 1
        return self._one(super().generate(params))

    async def _one(self, events: AsyncGenerator[Event]) -> AsyncGenerator[Event]:
        try:
            async for event in events:
                yield event
        finally:
            self.running -= 1


def plan(**changes: Any) -> OverloadPlan:
    values: dict[str, Any] = {
        "input_tokens": 40,
        "output_tokens": 4,
        "factor": 10.0,
        "duration_s": 1.0,
        "unloaded": 3,
        "capacity_s": 0.5,
        "concurrency": 2,
    }
    return OverloadPlan(**{**values, **changes})


def figures(**changes: Any) -> OverloadFigures:
    """Those of a server that stands the load."""
    values: dict[str, Any] = {
        "unloaded_ttft": Spread(100.0, 100.0, 120.0),
        "capacity": 2.0,
        "offered": 20.0,
        "accepted": 50,
        "refused": 500,
        "failed": {},
        "completed_rate": 2.0,
        "ttft": Spread(150.0, 150.0, 239.0),
        "refusal": Spread(5.0, 5.0, 99.0),
        "longest_refusal_ms": 130.0,
        "send_delay": Spread(1.0, 0.5, 20.0),
        "lost_pids": (),
        "failed_steps": 0,
    }
    return OverloadFigures(**{**values, **changes})


async def test_a_server_is_offered_a_multiple_of_what_it_answers() -> None:
    phases: list[str] = []
    with toy_server(engine=NarrowEngine()) as server:
        async with AsyncClient(server.address) as client:
            found = await run_overload(client, plan(), TEXT, phases.append)
        asked = [tuple(one.prompt) for one in server.engine.seen if isinstance(one, GenerateParams)]
    assert len(phases) == 3
    assert found.capacity > 2
    assert found.offered > 5 * found.capacity
    assert found.accepted > 0
    assert found.refused > found.accepted
    assert (found.failed, found.lost_pids, found.failed_steps) == ({}, (), 0)
    assert len(set(asked)) == len(asked), "no request can use the KV of another one"
    assert found.as_json()["p99_refusal_ms"] == pytest.approx(found.refusal.p99 if found.refusal else None)


async def test_a_server_that_answers_nothing_is_not_measured() -> None:
    with toy_server(engine=ToyEngine(max_seq_len=8)) as server:
        async with AsyncClient(server.address) as client:
            with pytest.raises(FailedPrecondition, match="even without load: InvalidRequest"):
                await run_overload(client, plan(), TEXT, lambda _: None)


async def test_processes_that_ended_are_told() -> None:
    class Mortal(NarrowEngine):
        async def status(self) -> ClusterStatus:
            return replace(await super().status(), worker_pids=(13,) if self.seen else (12,))

    with toy_server(engine=Mortal()) as server:
        async with AsyncClient(server.address) as client:
            found = await run_overload(client, plan(), TEXT, lambda _: None)
    assert found.lost_pids == (12,)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ttft": Spread(150.0, 150.0, 241.0)}, "2.01 times"),
        ({"refusal": Spread(5.0, 5.0, 101.0)}, "refusals took 101 ms"),
        ({"failed": {"Unavailable": 1}}, "Unavailable"),
        ({"lost_pids": (7,)}, "processes ended: 7"),
        ({"failed_steps": 2}, "2 steps failed"),
        ({"ttft": None, "accepted": 0}, "no request was accepted"),
    ],
)
def test_what_a_server_should_not_do_is_said(changes: dict[str, Any], said: str) -> None:
    assert figures().shortcomings == []
    (found,) = figures(**changes).shortcomings
    assert said in found


async def test_a_client_that_sends_late_is_told_apart_from_the_server() -> None:
    blocking: list[asyncio.Handle] = []

    def block_later(phase: str) -> None:
        if "requests/s" in phase:
            blocking.append(asyncio.get_running_loop().call_later(0.5, time.sleep, 0.4))

    with toy_server(engine=NarrowEngine()) as server:
        async with AsyncClient(server.address) as client:
            found = await run_overload(client, plan(), TEXT, block_later)
    assert blocking
    assert found.send_delay is not None
    assert found.send_delay.p99 > 100
    assert found.client_is_late
    assert not figures().client_is_late


def test_the_command_prints_and_writes_the_figures(tmp_path: Path) -> None:
    file = tmp_path / "overload.json"
    words = "overload --duration 1s --capacity-time 1s --unloaded 3 --input-len 40 --output-len 4"
    with toy_server(engine=NarrowEngine()) as server:
        finished = run_bench(words, file, server.address)
    value = json.loads(file.read_text())
    assert (finished.returncode == 0) == (not value["shortcomings"])
    assert all(said in finished.stderr for said in value["shortcomings"])
    assert f"Refused requests:                       {value['refused']}" in finished.stdout
    assert "P99 TTFT, of the unloaded one:" in finished.stdout
    assert value["factor"] == 10.0
