"""What KV actors hold, without ever waiting long for one that does not answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from moorage.runtime.cluster.os_processes import ProcessState
from moorage.runtime.serving.protocol import KvActorStatus

ANSWER_S = 1.0
"""A snapshot waits no longer for an actor's figures; it then tells the last known ones."""


class ActorFigures:
    """Asks each actor at most one question at a time, and none that is stopped or gone."""

    def __init__(
        self,
        names: Sequence[str],
        pids: Sequence[int],
        ask: Sequence[Callable[[], Awaitable[Any]]],
        state_of: Callable[[int], ProcessState],
    ) -> None:
        """`ask[i]()` brings the StoreStats of actor i; `state_of` tells what its process does."""
        self._known = [KvActorStatus(name, pid, 0, 0, 0) for name, pid in zip(names, pids, strict=True)]
        self._ask, self._state_of = ask, state_of
        self._asked: list[asyncio.Future[Any] | None] = [None] * len(self._known)
        self._closed = False

    async def __call__(self) -> tuple[KvActorStatus, ...]:
        """The figures as they are now, or as they were last known."""
        return tuple(await asyncio.gather(*map(self._of, range(len(self._known)))))

    def close(self) -> None:
        """From now on the last known figures are told, and nobody is asked."""
        self._closed = True

    async def _of(self, index: int) -> KvActorStatus:
        known = self._known[index]
        state = self._state_of(known.pid)
        if self._closed:
            return known
        if state is not ProcessState.RUNNING:
            return _told(known, str(state))
        asked = self._asked[index] or asyncio.ensure_future(_answer(self._ask[index]))
        done, _ = await asyncio.wait((asked,), timeout=ANSWER_S)
        self._asked[index] = None if done else asked
        if not done:
            return _told(known, "unresponsive")
        if asked.exception() is not None:
            return _told(known, str(ProcessState.GONE))
        stats = asked.result()
        self._known[index] = KvActorStatus(
            known.name, known.pid, stats.used_bytes, stats.capacity_bytes, stats.num_sessions
        )
        return self._known[index]


async def _answer(ask: Callable[[], Awaitable[Any]]) -> Any:
    return await ask()


def _told(known: KvActorStatus, state: str) -> KvActorStatus:
    return KvActorStatus(
        known.name, known.pid, known.used_bytes, known.capacity_bytes, known.num_sessions, state
    )
