"""Which idle sessions are evicted for a request. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet

from moorage.runtime.serving.capacity import Resources
from moorage.runtime.serving.session_cache import IdleSession
from moorage.runtime.serving.sessions.keys import is_unnamed
from moorage.runtime.serving.sessions.shared_blocks import Freed


def evictions(
    candidates: Iterable[IdleSession],
    awaited: AbstractSet[str],
    gone: Sequence[IdleSession],
    free: Resources,
    fits: Callable[[Resources], bool],
) -> list[IdleSession] | None:
    """Which `candidates` to evict beside those that are `gone` anyway, until it `fits`; None if all are not enough.

    `free` is what is free before. Sessions that no request awaits go first, of these the unnamed ones, the longest
    unused before others, and none that makes no difference. The time grows with the number of sessions: there may be
    thousands, and all streams wait.
    """
    freed = Freed(free)
    for one in gone:
        freed.add(one)
    if fits(freed.free):
        return []
    evicted: list[IdleSession] = []
    for victim in sorted(candidates, key=lambda held: (held.name in awaited, not is_unnamed(held.name))):
        freed.add(victim)
        evicted.append(victim)
        if fits(freed.free):
            break
    else:
        return None
    needed: list[IdleSession] = []
    for victim in evicted[::-1]:
        freed.remove(victim)
        if not fits(freed.free):
            freed.add(victim)
            needed.append(victim)
    return needed[::-1]
