"""A link to a KV actor of another host, by Ray calls. Arrays travel as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import ray

from moorage.workers.errors import MoorageError, PeerDead
from moorage.workers.kv.operation import Operation
from moorage.workers.kv.operations import Drop
from moorage.workers.spec import KvLayout

T = TypeVar("T")
_MAX_UNCONFIRMED = 64
"""Writes and commits of one session that may be under way; more would only fill Ray's object store."""


class RayLink:
    """A `Link` over the methods of a KvActor handle. Ray keeps the calls of one link in order."""

    shard = None
    """The store's memory lies on another host."""

    def __init__(self, handle: Any, layout: KvLayout, *, timeout_s: float = 60.0) -> None:
        self._handle, self.layout, self._timeout_s = handle, layout, timeout_s
        self.scores_here = False
        self._unconfirmed: dict[int, list[Any]] = {}

    def call(self, operation: Operation[T]) -> T:
        """See Link."""
        return self.submit(operation)()

    def submit(self, operation: Operation[T]) -> Callable[[], T]:
        """See Link."""
        call = self._handle.call.remote(operation)

        def collect() -> T:
            sessions = operation.sessions
            if isinstance(operation, Drop):
                self._unconfirmed.pop(operation.session_id, None)
            elif len(sessions) == 1:
                self._confirm(sessions[0])
            reply: T = self._wait(call)
            return reply

        return collect

    def post(self, *operations: Operation[Any]) -> None:
        """See Link."""
        for operation in operations:
            call = self._handle.call.remote(operation)
            for session_id in operation.sessions:
                calls = self._unconfirmed.setdefault(session_id, [])
                calls.append(call)
                if len(calls) >= _MAX_UNCONFIRMED:
                    self._confirm(session_id)

    def close(self) -> None:
        """Ends the link; the sessions stay. Idempotent."""
        self._unconfirmed.clear()

    def _confirm(self, session_id: int) -> None:
        for call in self._unconfirmed.pop(session_id, ()):
            self._wait(call)

    def _wait(self, call: Any) -> Any:
        try:
            return ray.get(call, timeout=self._timeout_s)
        except ray.exceptions.RayTaskError as error:
            # Ray adds a remote traceback to the message; the cause is the error as the store raised it.
            if isinstance(error.cause, MoorageError):
                raise error.cause from None
            raise
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
            reason = str(error).partition("\n")[0]
            raise PeerDead(f"KV actor: {reason}; its sessions are lost; start the cluster again") from error
