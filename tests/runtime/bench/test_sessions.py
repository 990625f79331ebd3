"""`runtime bench sessions`: what it asks of two lives of a server, over a real engine, and what it says of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from moorage.client import Client
from moorage.runtime.api.grpc.server import ApiServer
from moorage.runtime.bench.sessions import (
    BRANCH,
    SESSION,
    Asked,
    FirstLife,
    SecondLife,
    SessionFigures,
    SessionPlan,
    first_life,
    second_life,
)
from moorage.runtime.cli.bench_sessions import _lines
from tests.runtime.api.http.real_server import coordinating

T = TypeVar("T")

PLAN = SessionPlan.of(range(3, 400), length=600, output_tokens=4)


async def lived(folder: Path, life: Callable[[Client], T]) -> tuple[T, list[str]]:
    """What comes of one life of a server that saves in `folder`, and the sessions that it holds at its end."""

    def work(address: str) -> tuple[T, list[str]]:
        with Client(address) as client:
            return life(client), [session.name for session in client.sessions.list()]

    async with coordinating(f"sessions.path={folder}") as coordinator:
        server = ApiServer()
        address = await server.start("127.0.0.1:0")
        await server.serve(coordinator)
        try:
            return await asyncio.to_thread(work, address)
        finally:
            await coordinator.close()
            await server.stop()


async def test_the_second_question_and_a_restart_pay_only_for_what_is_new(tmp_path: Path) -> None:
    before, held = await lived(tmp_path, lambda client: first_life(client, PLAN))
    assert {SESSION, BRANCH} <= set(held)
    assert before.first.cached_tokens < 100 < 500 < before.second.cached_tokens < before.second.prompt_tokens
    assert before.second.prompt_tokens == len(PLAN.document) + len(PLAN.questions[1])
    assert before.first.token_ids != before.second.token_ids
    assert before.shared_bytes == before.branch_bytes > 0
    assert before.saved_bytes > 0
    after, held = await lived(tmp_path, lambda client: second_life(client, PLAN, before))
    assert held.count(SESSION) == 1
    assert after.again.cached_tokens == before.second.cached_tokens
    assert after.rest.prompt_tokens - after.rest.cached_tokens == 1, "its last token alone"
    assert SessionFigures(before, after).same_tokens


def test_a_seed_gives_the_same_document_and_questions() -> None:
    assert SessionPlan.of(range(3, 400), 600, 4) == PLAN != SessionPlan.of(range(3, 400), 600, 4, seed=1)
    assert (len(PLAN.document), len(set(PLAN.questions))) == (600, 2)


def test_figures_are_parts_of_the_first_question() -> None:
    first, second = Asked(20.0, 1032, 0, (1, 2)), Asked(0.1, 1032, 992, (3, 4))
    whole, rest = Asked(0.1, 1032, 992, (3, 4, 5, 6)), Asked(0.01, 1034, 1033, (5, 6))
    before = FirstLife(first, second, whole, 0.003, 4 << 20, 4 << 20, 1.5, 3 << 20)
    figures = SessionFigures(before, SecondLife(0.3, rest, replace(second, ttft_s=0.2)))
    assert (figures.second_part, figures.restart_part, figures.same_tokens) == (0.005, 0.025, True)
    text = "\n".join(_lines(figures))
    assert "0.100 s, 1/200" in text
    assert "3.0 ms, shares 4.00 MiB of 4.00 MiB" in text
    assert "Load and question together:             1/40" in text
    assert "0.010 s, 1 token read" in text
    assert not replace(figures, after=SecondLife(0.3, first, second)).same_tokens
    other = replace(figures, after=SecondLife(0.3, rest, first))
    assert not other.same_tokens
    assert other.as_json()["same_tokens"] is False
