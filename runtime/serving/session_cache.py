"""Named sessions whose KV outlives a request, so that the next turn pays only for its new tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from moorage.runtime.serving.capacity import Resources
from moorage.runtime.serving.reuse import StoredKv


@dataclass(frozen=True, slots=True)
class IdleSession:
    """KV in DRAM that no request uses now."""

    name: str
    session_id: int
    stored: StoredKv
    resources: Resources
    """Its pages in each actor. It holds no device slots."""
    first_actor: int = 0
    """The actor of its first stripe."""


class SessionCache:
    """All idle named sessions, the longest unused first."""

    def __init__(self) -> None:
        self._by_name: dict[str, IdleSession] = {}
        self.resources: Resources | None = None
        """What all of them hold; None before the first one came."""

    def __len__(self) -> int:
        return len(self._by_name)

    def __iter__(self) -> Iterator[IdleSession]:
        return iter(tuple(self._by_name.values()))

    def get(self, name: str | None) -> IdleSession | None:
        """The idle session of that name."""
        return None if name is None else self._by_name.get(name)

    def add(self, session: IdleSession) -> None:
        """Records the KV of a finished request, as the most recently used."""
        assert session.name not in self._by_name, "a session is used by one request at a time"
        self._by_name[session.name] = session
        self.resources = (
            session.resources if self.resources is None else self.resources.plus(session.resources)
        )

    def remove(self, session: IdleSession) -> None:
        """The session is evicted, or a request goes on with it."""
        assert self.resources is not None
        del self._by_name[session.name]
        self.resources = self.resources.minus(session.resources)
