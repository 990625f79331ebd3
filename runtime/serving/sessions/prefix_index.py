"""Which idle sessions hold a block, by the hash of the block and all before it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar


class Indexed(Protocol):
    """A session as the index knows it."""

    @property
    def session_id(self) -> int:
        """Names it, also under another name."""

    @property
    def digests(self) -> Sequence[bytes]:
        """The hashes of its full blocks, in order."""


S = TypeVar("S", bound=Indexed)


class PrefixIndex:
    """Every hash of every session that was added and not removed."""

    def __init__(self) -> None:
        self._holders: dict[bytes, set[int]] = {}

    def __len__(self) -> int:
        return len(self._holders)

    def add(self, session: Indexed) -> None:
        """Lets the session be found by its blocks from now on."""
        for digest in session.digests:
            self._holders.setdefault(digest, set()).add(session.session_id)

    def remove(self, session: Indexed) -> None:
        """Lets the session be found no longer."""
        for digest in session.digests:
            holders = self._holders[digest]
            holders.discard(session.session_id)
            if not holders:
                del self._holders[digest]

    def longest(self, digests: Sequence[bytes], sessions: Iterable[S]) -> list[S]:
        """The `sessions` with the most first blocks of a chain, the last of them first; none without any."""
        low, high = 0, len(digests)
        while low < high:  # A session that has a block has all blocks before it.
            middle = (low + high + 1) // 2
            low, high = (middle, high) if digests[middle - 1] in self._holders else (low, middle - 1)
        if not low:
            return []
        holders = self._holders[digests[low - 1]]
        return [session for session in sessions if session.session_id in holders][::-1]
