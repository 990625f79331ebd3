"""What a status tells of KV actors that answer, that are late, stopped or gone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from moorage.runtime.cluster import actor_figures
from moorage.runtime.cluster.actor_figures import ActorFigures
from moorage.runtime.cluster.os_processes import ProcessState
from moorage.runtime.serving.status_records import KvActorStatus
from moorage.workers.errors import Unavailable
from moorage.workers.kv.messages import StoreStats

STATS = StoreStats(8, 4, 3, 0, 500, 1000, 0)
KNOWN = KvActorStatus("kv-0", 7, 500, 1000, 3)


def told(known: KvActorStatus, state: str) -> KvActorStatus:
    return KvActorStatus(
        known.name, known.pid, known.used_bytes, known.capacity_bytes, known.num_sessions, state
    )


class Actor:
    """Answers once `free` is set, or fails."""

    def __init__(self) -> None:
        self.free = asyncio.Event()
        self.free.set()
        self.asked = 0
        self.error: Exception | None = None
        self.state = ProcessState.RUNNING

    async def ask(self) -> StoreStats:
        self.asked += 1
        await self.free.wait()
        if self.error is not None:
            raise self.error
        return STATS


def figures_of(actor: Actor) -> Callable[[], Awaitable[tuple[KvActorStatus, ...]]]:
    return ActorFigures(["kv-0"], [7], [actor.ask], lambda _: actor.state)


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actor_figures, "ANSWER_S", 0.01)


def test_a_late_actor_is_asked_once_and_its_last_figures_are_told_meanwhile() -> None:
    async def run() -> None:
        actor = Actor()
        figures = figures_of(actor)
        assert await figures() == (KNOWN,)
        actor.free.clear()
        for _ in range(3):
            assert await figures() == (told(KNOWN, "unresponsive"),)
        assert actor.asked == 2
        actor.free.set()
        assert await figures() == (KNOWN,)

    asyncio.run(run())


@pytest.mark.parametrize("state", [ProcessState.STOPPED, ProcessState.GONE])
def test_an_actor_that_is_stopped_or_gone_is_not_asked(state: ProcessState) -> None:
    async def run() -> None:
        actor = Actor()
        figures = figures_of(actor)
        await figures()
        actor.state = state
        assert await figures() == (told(KNOWN, str(state)),)
        assert actor.asked == 1

    asyncio.run(run())


def test_an_error_counts_as_gone() -> None:
    async def run() -> None:
        actor = Actor()
        actor.error = Unavailable("it died")
        assert await figures_of(actor)() == (KvActorStatus("kv-0", 7, 0, 0, 0, "gone"),)

    asyncio.run(run())


def test_once_closed_nobody_is_asked() -> None:
    async def run() -> None:
        actor = Actor()
        figures = ActorFigures(["kv-0"], [7], [actor.ask], lambda _: actor.state)
        await figures()
        figures.close()
        assert await figures() == (KNOWN,)
        assert actor.asked == 1

    asyncio.run(run())
