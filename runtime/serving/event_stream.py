"""What the coordinator hands out for an admitted request: its events, and a way to leave."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from moorage.runtime.serving.protocol import Event, Finished

MOST_UNREAD = 256
"""Events of a request that may wait for their reader; with more of them it rests until half are read."""


class EventStream:
    """Events of one request, the last one Finished. The request ends when the stream does or is closed.

    A request whose events nobody reads rests after `MOST_UNREAD` of them, and keeps its room. The request is
    admitted already, so whoever got a stream must iterate it to its end or close it.
    """

    def __init__(
        self,
        events: asyncio.Queue[Event | Exception],
        leave: Callable[[], None],
        go_on: Callable[[], None] = lambda: None,
    ) -> None:
        """`leave` ends the request; `go_on` is told when there is room for events again."""
        self._events, self._leave, self._go_on = events, leave, go_on
        self._over = False

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> Event:
        """The next event. Raises what the request failed with."""
        if self._over:
            raise StopAsyncIteration
        try:
            event = await self._events.get()
            if self._events.qsize() == MOST_UNREAD // 2:
                self._go_on()
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
