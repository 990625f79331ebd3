"""Which idle sessions are evicted for a request. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet

from moorage.runtime.serving.capacity import Resources
from moorage.runtime.serving.session_cache import IdleSession
from moorage.runtime.serving.sessions.keys import is_unnamed


def evictions(
    candidates: Sequence[IdleSession],
    awaited: AbstractSet[str],
    gone: Sequence[IdleSession],
    free_after: Callable[[Iterable[IdleSession]], Resources],
    fits: Callable[[Resources], bool],
) -> list[IdleSession] | None:
    """Which `candidates` to evict beside those that are `gone` anyway, until it `fits`; None if all are not enough.

    Sessions that no request awaits go first, of these the unnamed ones, the longest unused before others, and none
    that makes no difference.
    """
    if fits(free_after(gone)):
        return []
    if not fits(free_after([*gone, *candidates])):
        return None
    evicted: list[IdleSession] = []
    for victim in sorted(candidates, key=lambda held: (held.name in awaited, not is_unnamed(held.name))):
        evicted.append(victim)
        if fits(free_after([*gone, *evicted])):
            break
    for victim in evicted[::-1]:
        rest = [one for one in evicted if one is not victim]
        if fits(free_after([*gone, *rest])):
            evicted = rest
    return evicted
