"""Named sessions whose KV outlives a request, so that the next turn pays only for its new tokens."""

from __future__ import annotations

from dataclasses import dataclass

from moorage.runtime.reuse import StoredKv
from moorage.runtime.scheduler import Room
from moorage.workers.errors import InvalidRequest


@dataclass(slots=True)
class Conversation:
    """KV that stays after a request."""

    name: str
    session_id: int
    stored: StoredKv
    room: Room
    last_used_s: float
    busy: bool = False


class Conversations:
    """All named sessions; idle ones leave, longest unused first, when others need their room."""

    def __init__(self) -> None:
        self._by_name: dict[str, Conversation] = {}

    def __len__(self) -> int:
        return len(self._by_name)

    def claim(self, name: str) -> Conversation | None:
        """The conversation of that name, marked busy; None if there is none. InvalidRequest if it is in use."""
        found = self._by_name.get(name)
        if found is not None and found.busy:
            raise InvalidRequest(
                f"session {name!r} is answering another request; wait for it or use another name"
            )
        if found is not None:
            found.busy = True
        return found

    def keep(self, conversation: Conversation) -> None:
        """Records what a finished request left behind, no longer busy."""
        conversation.busy = False
        self._by_name[conversation.name] = conversation

    def forget(self, name: str) -> None:
        """The named session is gone."""
        self._by_name.pop(name, None)

    def idlest(self) -> Conversation | None:
        """The longest unused conversation that is not busy."""
        idle = [c for c in self._by_name.values() if not c.busy]
        return min(idle, key=lambda c: c.last_used_s, default=None)
