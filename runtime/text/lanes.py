"""How many jobs of the text process run at once and wait, by kind, so that short texts never wait for long ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

from moorage.workers.errors import ResourceExhausted

Lane = Literal["short", "chat", "long"]

LONG_BYTES = 256 << 10
"""Texts over this size use the lane "long"."""
MAX_WAITING = 256
"""Jobs of one lane that wait; more are refused."""
MAX_WAIT_S = 60.0
_RUNNING: dict[Lane, int] = {"short": 4, "chat": 2, "long": 1}
"""Jobs of one lane that run at once."""
_RETRY_S = 2.0


class Lanes:
    """The jobs of each lane. It belongs to one event loop."""

    def __init__(self) -> None:
        self._free = {lane: asyncio.Semaphore(count) for lane, count in _RUNNING.items()}
        self._waiting = dict.fromkeys(_RUNNING, 0)

    @asynccontextmanager
    async def enter(self, lane: Lane) -> AsyncIterator[None]:
        """Waits until a job of this lane may run. Raises ResourceExhausted when too many wait, or for too long."""
        if self._waiting[lane] >= MAX_WAITING:
            raise ResourceExhausted(
                f"{MAX_WAITING} texts wait to be tokenised; try again later", retry_after_s=_RETRY_S
            )
        self._waiting[lane] += 1
        try:
            async with asyncio.timeout(MAX_WAIT_S):
                await self._free[lane].acquire()
        except TimeoutError:
            raise ResourceExhausted(
                f"the text waited {MAX_WAIT_S:g} s behind others to be tokenised; try again later",
                retry_after_s=_RETRY_S,
            ) from None
        finally:
            self._waiting[lane] -= 1
        try:
            yield
        finally:
            self._free[lane].release()
