"""Sessions whose KV outlives a request. Pure. `sessions/reuse.py` says what another prompt may use of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from moorage.runtime.serving.capacity import Resources
from moorage.runtime.serving.sessions.cut_answers import Draw
from moorage.runtime.serving.sessions.prefix_index import PrefixIndex
from moorage.runtime.serving.sessions.shared_blocks import SharedBlocks, held_by
from moorage.workers.spec import MemorySpec
from moorage.workers.token_ids import TokenIds


@dataclass(frozen=True, slots=True)
class StoredKv:
    """What a session holds after a request: the ids whose keys and values are stored, and how they were made."""

    token_ids: TokenIds
    """Ids of the prompt, then of generated tokens."""
    prompt_tokens: int
    """Tokens of the last request's whole prompt, prefilled or not, without an answer that it went on with."""
    memory: MemorySpec
    first_held: int = 0
    """The first token whose keys and values the rings of sliding-window layers still hold."""
    draw: Draw | None = None
    """How the tokens after the prompt were drawn, where their answer may go on."""


@dataclass(frozen=True, slots=True)
class IdleSession:
    """KV in DRAM that no request uses now."""

    name: str
    """Its name with its tenant, as `sessions/keys.py` joins them."""
    session_id: int
    stored: StoredKv
    resources: Resources
    """Its pages in each actor, those of `shared` not counted. It holds no device slots."""
    first_actor: int = 0
    """The actor of its first stripe."""
    shared: SharedBlocks | None = None
    """Its first blocks, where other sessions may hold them as well; `resources` are of all others."""
    digests: tuple[bytes, ...] = ()
    """Hashes of its full blocks, by which other prompts find them."""
    used_s: float = 0.0
    """When its last request ended, in Unix seconds."""


class SessionCache:
    """All idle named sessions, the longest unused first."""

    def __init__(self, num_actors: int) -> None:
        self._by_name: dict[str, IdleSession] = {}
        self.nothing = Resources((0,) * num_actors, 0)
        self.index = PrefixIndex()
        self.pinned: set[str] = set()
        """Names of sessions that no other session's request may evict."""

    def __len__(self) -> int:
        return len(self._by_name)

    def __iter__(self) -> Iterator[IdleSession]:
        return iter(tuple(self._by_name.values()))

    def get(self, name: str | None) -> IdleSession | None:
        """The idle session of that name."""
        return None if name is None else self._by_name.get(name)

    def evictable(self, name: str | None) -> list[IdleSession]:
        """What a request of session `name` may evict: other sessions that are not pinned."""
        return [held for held in self if held.name != name and held.name not in self.pinned]

    def add(self, session: IdleSession) -> None:
        """Records the KV of a finished request, as the most recently used."""
        assert session.name not in self._by_name, "a session is used by one request at a time"
        self._by_name[session.name] = session
        self.index.add(session)

    @property
    def resources(self) -> Resources:
        """What all of them hold, shared blocks counted once."""
        return held_by(self, self.nothing)

    def replace(self, session: IdleSession, new: IdleSession) -> IdleSession:
        """Puts another record in the place of a session's."""
        self._by_name = {one.name: one for one in (new if one is session else one for one in self)}
        return new

    def rename(self, session: IdleSession, name: str) -> IdleSession:
        """The session under another name, in its old place of the order."""
        renamed = self.replace(session, replace(session, name=name))
        if session.name in self.pinned:
            self.pinned.remove(session.name)
            self.pinned.add(name)
        return renamed

    def remove(self, session: IdleSession) -> None:
        """The session is evicted, or a request goes on with it."""
        del self._by_name[session.name]
        self.index.remove(session)
