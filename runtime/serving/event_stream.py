"""The stream on which a client reads the events of its request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from moorage.runtime.serving.protocol import Event, Finished

MOST_UNREAD = 256
"""Events of a request that may wait for their reader; with more of them it is paused until half are read."""


class EventStream:
    """Events of one request, the last one Finished. The request ends when the stream does or is closed.

    A request whose events nobody reads is paused after `MOST_UNREAD` of them, and keeps its reservation. The request
    runs already, so the owner of a stream must iterate it to its end or close it.
    """

    def __init__(
        self,
        events: asyncio.Queue[Event | Exception],
        on_close: Callable[[], None],
        on_read: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_close` ends the request; `on_read` is called when the stream can take more events again."""
        self._events, self._on_close, self._on_read = events, on_close, on_read
        self._closed = False

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> Event:
        """The next event. Raises the error that the request failed with."""
        if self._closed:
            raise StopAsyncIteration
        try:
            event = await self._events.get()
            if self._events.qsize() == MOST_UNREAD // 2:
                self._on_read()
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
        if not self._closed:
            self._closed = True
            self._on_close()
