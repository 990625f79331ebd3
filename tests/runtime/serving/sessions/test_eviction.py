"""Which idle sessions are evicted for a request, and that thousands of them hold up nobody."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest

from moorage.runtime.serving.capacity import Resources
from moorage.runtime.serving.session_cache import IdleSession, StoredKv
from moorage.runtime.serving.sessions.eviction import evictions
from moorage.runtime.serving.sessions.keys import unnamed_key
from moorage.workers.token_ids import TokenIds
from tests.engine_driver import FULL

STORED = StoredKv(TokenIds(), 0, FULL)


def session(name: str, *pages: int) -> IdleSession:
    return IdleSession(name, 1, STORED, Resources(pages, 0))


def evicted(held: Sequence[IdleSession], need: int, awaited: set[str] | None = None) -> list[str] | None:
    """Names of what is evicted, of sessions in one actor without free pages."""
    fits = Resources((need,), 0)
    found = evictions(held, awaited or set(), (), Resources((0,), 0), lambda free: free.holds(fits))
    return None if found is None else [one.name for one in found]


def test_the_longest_unused_go_first_then_the_named_ones_then_those_that_are_awaited() -> None:
    unnamed = unnamed_key("", 7)
    held = [session("awaited", 1), session("old", 1), session("new", 1), session(unnamed, 1)]
    order = [unnamed, "old", "new", "awaited"]
    for need in range(5):
        assert evicted(held, need, {"awaited"}) == order[:need]
    assert evicted(held, 5, {"awaited"}) is None


def test_none_is_evicted_that_makes_no_difference() -> None:
    held = [session("a", 1), session("b", 1), session("c", 8), session("d", 1)]
    assert evicted(held, 8) == ["c"]
    assert evicted(held, 9) == ["a", "c"]


def test_nothing_is_evicted_where_those_that_are_gone_anyway_suffice() -> None:
    need, own, nothing = Resources((3,), 0), session("own", 3), Resources((0,), 0)
    assert evictions([session("a", 9)], set(), [own], nothing, lambda free: free.holds(need)) == []


def test_what_stays_could_not_be_fewer(rng: np.random.Generator) -> None:
    """Over two actors: without any one of the evicted sessions the request would not fit."""
    for _ in range(50):
        held = [session(str(n), *map(int, rng.integers(0, 4, 2))) for n in range(8)]
        need = Resources(tuple(map(int, rng.integers(1, 12, 2))), 0)
        free = Resources((1, 1), 0)
        found = evictions(held, set(), (), free, lambda free, need=need: free.holds(need))  # type: ignore[misc]
        everything = [sum(one.resources.pages[actor] for one in held) + 1 for actor in range(2)]
        assert (found is None) == any(n > h for n, h in zip(need.pages, everything, strict=True))
        for rest in () if found is None else itertools.combinations(found, len(found) - 1):
            left = [1 + sum(one.resources.pages[actor] for one in rest) for actor in range(2)]
            assert not found or any(n > h for n, h in zip(need.pages, left, strict=True))


def test_the_work_grows_with_the_number_of_sessions_and_not_with_its_square(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    count, plus = 0, Resources.plus

    def counted(self: Resources, other: Resources) -> Resources:
        nonlocal count
        count += 1
        return plus(self, other)

    monkeypatch.setattr(Resources, "plus", counted)
    held = [session(str(n), 1) for n in range(1000)]
    found = evicted(held, 700)
    assert found is not None
    assert len(found) == 700
    assert 700 <= count < 3000
