"""The store's side of every link: answers operations, and keeps what one-way ones failed with."""

from __future__ import annotations

from typing import Any, TypeVar

from moorage.workers.errors import MoorageError
from moorage.workers.kv.operation import Operation
from moorage.workers.kv.operations import Drop
from moorage.workers.kv.store import KvStore

T = TypeVar("T")


class Dispatch:
    """Carries the operations of one link. The next reply for a session tells of a failed one without a reply."""

    def __init__(self, store: KvStore) -> None:
        self._store = store
        self._failures: dict[int, MoorageError] = {}

    def post(self, operation: Operation[Any]) -> None:
        """Does what has no reply."""
        try:
            operation.answer(self._store)
        except MoorageError as error:
            self.fail(operation, error)

    def fail(self, operation: Operation[Any], error: MoorageError) -> None:
        """Keeps the first error of each session."""
        for session_id in operation.sessions:
            self._failures.setdefault(session_id, error)

    def call(self, operation: Operation[T]) -> T:
        """The reply. Raises what an earlier `post` for its sessions, or the operation itself, failed with.

        An operation of several sessions leaves their failures for each to be told alone, and `Drop` for nobody.
        """
        sessions = operation.sessions
        for session_id in sessions:
            failure = self._failures.get(session_id)
            if failure is None:
                continue
            if len(sessions) == 1:
                del self._failures[session_id]
            if not isinstance(operation, Drop):
                raise failure
        return operation.answer(self._store)
