"""The memory that each KV actor uses. An actor that does not answer delays it by a second at most."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from moorage.runtime.cluster.os_processes import ProcessState
from moorage.runtime.serving.status_records import KvActorStatus

ANSWER_S = 1.0
"""Longest wait for an actor's statistics; after that the last known ones are reported."""


class ActorFigures:
    """Calls each actor at most once at a time, and no actor whose process is stopped or has ended."""

    def __init__(
        self,
        names: Sequence[str],
        pids: Sequence[int],
        ask: Sequence[Callable[[], Awaitable[Any]]],
        state_of: Callable[[int], ProcessState],
    ) -> None:
        """`ask[i]()` returns the StoreStats of actor i; `state_of` returns the state of the process of a pid."""
        self._known = [KvActorStatus(name, pid, 0, 0, 0) for name, pid in zip(names, pids, strict=True)]
        self._ask, self._state_of = ask, state_of
        self._asked: list[asyncio.Future[Any] | None] = [None] * len(self._known)
        self._closed = False

    async def __call__(self) -> tuple[KvActorStatus, ...]:
        """The status of every actor, with its present statistics or the last known ones."""
        return tuple(await asyncio.gather(*map(self._of, range(len(self._known)))))

    def close(self) -> None:
        """Reports the last known statistics from now on, and calls no actor."""
        self._closed = True

    async def _of(self, index: int) -> KvActorStatus:
        known = self._known[index]
        state = self._state_of(known.pid)
        if self._closed:
            return known
        if state is not ProcessState.RUNNING:
            return _in_state(known, str(state))
        asked = self._asked[index] or asyncio.ensure_future(_answer(self._ask[index]))
        done, _ = await asyncio.wait((asked,), timeout=ANSWER_S)
        self._asked[index] = None if done else asked
        if not done:
            return _in_state(known, "unresponsive")
        if asked.exception() is not None:
            return _in_state(known, str(ProcessState.GONE))
        stats = asked.result()
        self._known[index] = KvActorStatus(
            known.name, known.pid, stats.used_bytes, stats.capacity_bytes, stats.num_sessions
        )
        return self._known[index]


async def _answer(ask: Callable[[], Awaitable[Any]]) -> Any:
    return await ask()


def _in_state(known: KvActorStatus, state: str) -> KvActorStatus:
    return KvActorStatus(
        known.name, known.pid, known.used_bytes, known.capacity_bytes, known.num_sessions, state
    )
