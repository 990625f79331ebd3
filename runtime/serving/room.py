"""Countable room: pages in each KV actor, and device slots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Room:
    """What is free, held or needed. Pages are counted by KV actor."""

    pages: tuple[int, ...]
    slots: int

    def holds(self, need: Room) -> bool:
        """Whether `need` fits."""
        return need.slots <= self.slots and all(n <= h for n, h in zip(need.pages, self.pages, strict=True))

    def plus(self, other: Room) -> Room:
        """The sum."""
        pages = tuple(a + b for a, b in zip(self.pages, other.pages, strict=True))
        return Room(pages, self.slots + other.slots)

    def beyond(self, held: Room) -> Room:
        """What must be added to `held` to have all of this."""
        pages = tuple(max(0, a - b) for a, b in zip(self.pages, held.pages, strict=True))
        return Room(pages, max(0, self.slots - held.slots))

    def minus(self, other: Room) -> Room:
        """The difference."""
        pages = tuple(a - b for a, b in zip(self.pages, other.pages, strict=True))
        return Room(pages, self.slots - other.slots)

    def starting_at(self, actor: int) -> Room:
        """The same need for a session whose first stripe lies in `actor` and not in actor 0."""
        num_actors = len(self.pages)
        return Room(tuple(self.pages[(i - actor) % num_actors] for i in range(num_actors)), self.slots)


def first_actor(need: Room, free: Room) -> int | None:
    """The actor at which a session that needs `need` starts, so that all of it fits `free`; None if none does.

    The emptiest actor comes first, so that sessions spread evenly; among equals the lowest.
    """
    emptiest_first: Sequence[int] = sorted(range(len(free.pages)), key=lambda actor: -free.pages[actor])
    return next((actor for actor in emptiest_first if free.holds(need.starting_at(actor))), None)


def spread(need: Room, sessions: int) -> tuple[int, ...]:
    """Pages in each actor once `sessions` that need `need` have started, one after the other, in empty actors."""
    empty = Room((0,) * len(need.pages), 0)
    used, count = empty, 0
    while count < sessions:
        actor = min(range(len(used.pages)), key=used.pages.__getitem__)
        used, count = used.plus(need.starting_at(actor)), count + 1
        if count < sessions and len(set(used.pages)) == 1:  # from here on it goes round
            rest = spread(need, sessions % count)
            return tuple(sessions // count * used.pages[0] + pages for pages in rest)
    return used.pages
