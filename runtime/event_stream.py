"""What the coordinator hands out for an admitted request: its events, and a way to leave."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from moorage.runtime.requests import Event, Finished


class EventStream:
    """Events of one request, the last one Finished. The request ends when the stream does or is closed.

    The request is admitted already, so whoever got a stream must iterate it to its end or close it.
    """

    def __init__(self, events: asyncio.Queue[Event | Exception], leave: Callable[[], None]) -> None:
        self._events, self._leave = events, leave
        self._over = False

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> Event:
        """The next event. Raises what the request failed with."""
        if self._over:
            raise StopAsyncIteration
        try:
            event = await self._events.get()
            if isinstance(event, Exception):
                raise event
        except BaseException:
            await self.aclose()
            raise
        if isinstance(event, Finished):
            await self.aclose()
        return event

    async def aclose(self) -> None:
        """Ends the request's work at the next step boundary. Idempotent."""
        if not self._over:
            self._over = True
            self._leave()
