"""Tokens of a session, among which the next ones are looked up (prompt lookup decoding)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MATCH = 5
"""Last tokens that must have occurred before, in the same order, for what followed them to be proposed. On answers of
SmolLM2 nine of ten such tokens are right, and six of ten after three tokens."""


class KnownTokens:
    """Ids by position, from the first position that is known on. Holds 4 bytes a token."""

    def __init__(self) -> None:
        self._ids = np.empty(0, np.int32)
        self._first = self._count = 0

    def put(self, start: int, token_ids: Sequence[int]) -> None:
        """Tokens from position `start` on; what was known of later positions is forgotten.

        Where tokens before `start` are not known, those that are known are forgotten as well.
        """
        at = start - self._first
        if not 0 <= at <= self._count:
            self._first, at = start, 0
        end = at + len(token_ids)
        if end > len(self._ids):
            self._ids = np.concatenate((self._ids[:at], np.empty(2 * end - at, np.int32)))
        self._ids[at:end] = token_ids
        self._count = end

    def following(self, most: int) -> tuple[int, ...]:
        """At most `most` tokens that may come next: those that followed the latest earlier occurrence of the last
        tokens; none where these have not occurred before."""
        if self._count <= MATCH or most < 1:
            return ()
        ids = self._ids[: self._count]
        ends = np.flatnonzero(ids[MATCH - 1 : -1] == ids[-1]) + MATCH - 1
        for back in range(1, MATCH):
            ends = ends[ids[ends - back] == ids[-1 - back]]
        return self._continued(int(ends[-1]) + 1, most) if len(ends) else ()

    def _continued(self, at: int, most: int) -> tuple[int, ...]:
        """What stands from `at` on; where it reaches the end, it goes on with itself."""
        found: list[int] = []
        for place in range(at, at + most):
            found.append(int(self._ids[place]) if place < self._count else found[place - self._count])
        return tuple(found)
