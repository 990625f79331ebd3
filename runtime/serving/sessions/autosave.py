"""Saves sessions by themselves: once they were idle for a while, behind the work, and when the server stops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import structlog

from moorage.runtime.serving.session_cache import IdleSession, SessionCache
from moorage.runtime.serving.sessions.keys import is_unnamed
from moorage.runtime.serving.sessions.saving import SavedSessions
from moorage.workers.errors import MoorageError

log = structlog.get_logger()

_CLOSE_S = 15.0
"""Most time that saves may take when the server stops; `runtime stop` waits for twice as long."""


class Autosave:
    """Looks when a request of a session has ended, and when the time of the next session has come."""

    def __init__(
        self,
        saved: SavedSessions,
        idle: Callable[[], SessionCache],
        after_s: float,
        block_size: int,
        clock: Callable[[], float],
    ) -> None:
        self._saved, self._idle, self._after_s = saved, idle, after_s
        self._block_size, self._clock = block_size, clock
        self._timer: asyncio.TimerHandle | None = None
        self._saving: asyncio.Task[None] | None = None
        self._failed: dict[str, float] = {}
        """The last use of each session that could not be saved. It is tried again after another use."""
        self._closed = False

    def look(self) -> None:
        """Saves what is due, unless that goes on already; else comes again when the next session is."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._saving is not None or self._closed:
            return
        now_s = self._clock()
        waits_s = [held.used_s + self._after_s - now_s for held in self._unsaved()]
        if waits_s and min(waits_s) <= 0:
            self._saving = asyncio.create_task(self._save())
            self._saving.add_done_callback(self._saved_all)
        elif waits_s:
            self._timer = asyncio.get_running_loop().call_later(min(waits_s), self.look)

    async def close(self) -> None:
        """Saves what is not saved yet, within a time; a session that was half written is not kept. Safe to call
        twice."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        try:
            async with asyncio.timeout(_CLOSE_S):
                if self._saving is not None:
                    await asyncio.gather(self._saving, return_exceptions=True)
                await self._save(least_s=0.0)
        except TimeoutError:
            log.warning("not all sessions were saved", limit_s=_CLOSE_S)

    def _unsaved(self) -> Iterator[IdleSession]:
        """Idle sessions with a name and a full block, used since they were saved."""
        for held in self._idle():
            found = self._saved.snapshots.held.get(held.name)
            saved_s = max(self._failed.get(held.name, 0.0), 0.0 if found is None else found[1].saved_s)
            is_long = len(held.stored.token_ids) >= self._block_size
            if is_long and held.used_s > saved_s and not is_unnamed(held.name):
                yield held

    async def _save(self, least_s: float | None = None) -> None:
        """Saves what was idle for so long, by default as the policy has it."""
        after_s = self._after_s if least_s is None else least_s
        for held in tuple(self._unsaved()):
            if held.used_s + after_s > self._clock():
                continue
            try:
                await self._saved.save(held)
            except MoorageError as error:
                self._failed[held.name] = held.used_s
                log.warning("a session was not saved", reason=str(error))

    def _saved_all(self, task: asyncio.Task[None]) -> None:
        self._saving = None
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("saving of sessions has ended", kind=type(error).__name__)
            return
        self.look()
