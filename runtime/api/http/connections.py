"""Connections of the HTTP server: how many there may be, and when one that does nothing is closed."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 1000
LOOK_EVERY_S = 15.0
MOST_UNREAD_S = 60.0
"""Time for a client to read on when the buffers of its connection are full."""
HEADER_S = 30.0
"""Time from the opening of a connection, or the end of an answer, to the next whole header."""


class BoundedConnection(H11Protocol):
    """uvicorn's protocol, which has no limit of its own for clients that send or read nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._look: asyncio.TimerHandle | None = None
        self._waits_since_s = self.loop.time()
        self._unread_since_s: float | None = None
        self._unread_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Counts the connection. When there are too many, the one that has been idle for longest is closed."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            idle = [one for one in self.connections if isinstance(one, BoundedConnection) and one.idle]
            oldest = min(idle, key=lambda one: one._waits_since_s, default=self)
            oldest.transport.abort()
        self._look = self.loop.call_later(LOOK_EVERY_S, self._check)

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the watch."""
        if self._look is not None:
            self._look.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """From now on the connection waits for its next request."""
        self._waits_since_s = self.loop.time()
        super().on_response_complete()

    @property
    def idle(self) -> bool:
        """Whether no request is being sent or answered."""
        return self.cycle is None or self.cycle.response_complete

    def _check(self) -> None:
        """Closes the connection at once if its client lets time pass."""
        now_s, unread = self.loop.time(), self.transport.get_write_buffer_size()
        if unread == 0 or unread < self._unread_bytes or self._unread_since_s is None:
            self._unread_since_s = now_s if unread else None
        self._unread_bytes = unread
        silent = self.idle and now_s - self._waits_since_s > HEADER_S
        unread_s = 0.0 if self._unread_since_s is None else now_s - self._unread_since_s
        if silent or unread_s > MOST_UNREAD_S:
            self.transport.abort()
            return
        self._look = self.loop.call_later(LOOK_EVERY_S, self._check)
