"""Named sessions whose KV outlives a request, so that the next turn pays only for its new tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from moorage.runtime.serving.reuse import StoredKv
from moorage.runtime.serving.room import Room


@dataclass(frozen=True, slots=True)
class Conversation:
    """KV in DRAM that no request uses now."""

    name: str
    session_id: int
    stored: StoredKv
    room: Room
    """Its pages in each actor. It holds no device slots."""
    first_actor: int = 0
    """The actor of its first stripe."""


class Conversations:
    """All idle named sessions, the longest unused first."""

    def __init__(self) -> None:
        self._by_name: dict[str, Conversation] = {}
        self.room: Room | None = None
        """What all of them hold; None before the first one came."""

    def __len__(self) -> int:
        return len(self._by_name)

    def __iter__(self) -> Iterator[Conversation]:
        return iter(tuple(self._by_name.values()))

    def get(self, name: str | None) -> Conversation | None:
        """The idle session of that name."""
        return None if name is None else self._by_name.get(name)

    def keep(self, conversation: Conversation) -> None:
        """Records what a finished request left behind, as the most recently used."""
        assert conversation.name not in self._by_name, "a session is used by one request at a time"
        self._by_name[conversation.name] = conversation
        self.room = conversation.room if self.room is None else self.room.plus(conversation.room)

    def remove(self, conversation: Conversation) -> None:
        """It is evicted, or a request goes on with it."""
        assert self.room is not None
        del self._by_name[conversation.name]
        self.room = self.room.minus(conversation.room)
