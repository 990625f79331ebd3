"""Which waiting requests may start: all that a request needs is reserved before its first step. Pure.

A waiting request reserves nothing. The resources of an idle session count as available, also when a request for that
session waits: that request then begins the session anew. Pinned sessions are not evicted. So whenever nothing runs,
the first of the waiting requests can start, unless pinned sessions hold what it needs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from moorage.runtime.serving.capacity import Resources, first_actor
from moorage.runtime.serving.fair_order import in_turn
from moorage.runtime.serving.scheduled_request import Limits, ScheduledRequest, Wait
from moorage.runtime.serving.session_cache import IdleSession, SessionCache
from moorage.runtime.serving.sessions.eviction import evictions
from moorage.runtime.serving.sessions.prefixes import Prefixes
from moorage.runtime.serving.sessions.shared_blocks import SharedBlocks, freed_by

Reusable = Callable[[str, IdleSession], int]
"""How many prompt tokens of a request an idle session's KV saves; with 0 the request begins the session anew."""


@dataclass(frozen=True, slots=True)
class Start:
    """How a request can start now."""

    reservation: Resources
    first_actor: int
    continues: IdleSession | None
    cached_tokens: int
    evicted: tuple[IdleSession, ...]
    source: IdleSession | None = None
    """Another session, whose first blocks it shares."""


@dataclass(slots=True)
class Admission:
    """Waiting requests in order of arrival, idle sessions, and free resources."""

    limits: Limits
    reusable: Reusable
    prefixes: Prefixes | None = None
    free: Resources = field(init=False)
    waiting: deque[ScheduledRequest] = field(default_factory=deque)
    idle: SessionCache = field(init=False)

    def __post_init__(self) -> None:
        self.free = self.limits.resources
        self.idle = SessionCache(len(self.free.pages))

    def admit(
        self, running: Mapping[str, ScheduledRequest]
    ) -> tuple[list[ScheduledRequest], list[IdleSession]]:
        """Starts what fits beside `running`, tenants by turns; returns it and the sessions evicted for it.

        A request whose session is in use is passed over. No request passes another that waits for resources.
        """
        admitted: list[ScheduledRequest] = []
        evicted: list[IdleSession] = []
        busy = _session_names(running.values())
        for request in in_turn(self.waiting, running.values()):
            if len(running) + len(admitted) >= self.limits.max_running:
                break
            if request.session_name in busy:
                continue
            start = self._start_of(request)
            if start is None:
                break
            self._begin(request, start)
            admitted.append(request)
            evicted += start.evicted
            busy |= _session_names((request,))
        return admitted, evicted

    def withdraw(self, request_id: str) -> None:
        """Removes a waiting request."""
        self.waiting = deque(request for request in self.waiting if request.request_id != request_id)

    def release(self, request: ScheduledRequest) -> None:
        """Frees what a request had reserved, and blocks that it was the last to share."""
        self._free(request.reservation, request.shared)

    def keep(self, reservation: Resources, session: IdleSession) -> None:
        """Frees what a request had reserved, except for the session that it leaves idle."""
        self.free = self.free.plus(reservation).minus(session.resources)
        self.idle.add(session)

    def discard(self, session: IdleSession) -> None:
        """Frees what an idle session holds."""
        self.idle.remove(session)
        self._free(session.resources, session.shared)

    def _free(self, resources: Resources, shared: SharedBlocks | None) -> None:
        self.free = self.free.plus(resources)
        if shared is not None:
            self.free = self.free.plus(shared.release())

    def waits(self, running: Mapping[str, ScheduledRequest]) -> list[Wait]:
        """Why each waiting request waits, in order."""
        busy, blocked, found = _session_names(running.values()), False, []
        for place, request in enumerate(in_turn(self.waiting, running.values())):
            if request.session_name in busy:
                found.append(Wait(request, "session", place))
                continue
            wait = Wait(request, "queue", place) if blocked else self._wait_of(request, place, len(running))
            blocked |= wait.waits_for != "queue"
            found.append(wait)
        return found

    def _wait_of(self, request: ScheduledRequest, place: int, num_running: int) -> Wait:
        """The wait of the first request whose session is not in use; "queue" when the next step admits it."""
        if num_running >= self.limits.max_running:
            return Wait(request, "running", place)
        if self._lacks_device(request):
            return Wait(request, "device_slots", place)
        start = self._start_of(request)
        if start is None:
            held, cached = self._continued(request)
            return Wait(
                request, "memory", place, request.need if held is None else _beyond(request, held, cached)
            )
        return Wait(request, "queue", place, cached_tokens=start.cached_tokens)

    def _lacks_device(self, request: ScheduledRequest) -> bool:
        """Whether running sessions hold slots or rings of the device that the request needs."""
        if request.need.slots > self.free.slots:
            return True
        if request.need.rings <= self.free.rings:
            return False
        own = self.idle.get(request.session_name)
        held = [*self.idle.evictable(request.session_name), *([] if own is None else [own])]
        return request.need.rings > self._free_after(held).rings

    def _begin(self, request: ScheduledRequest, start: Start) -> None:
        self.waiting.remove(request)
        held = start.continues
        if held is not None and held.shared is not None:  # It holds what it keeps before the rest is freed.
            kept = held.shared.cut(start.cached_tokens)
            request.shared = None if kept is None else kept.hold()
        if start.source is not None and self.prefixes is not None:
            request.source = start.source
            request.shared = self.prefixes.share(start.source, start.cached_tokens, self.idle)
        for session in start.evicted if held is None else (*start.evicted, held):
            self.discard(session)
        self.free = self.free.minus(start.reservation)
        request.reservation, request.first_actor = start.reservation, start.first_actor
        request.continues, request.prefilled_tokens = held, start.cached_tokens

    def _start_of(self, request: ScheduledRequest) -> Start | None:
        """How a request can start now, evicting idle sessions where that makes it fit; None if it can't."""
        if self._lacks_device(request):
            return None
        held, cached_tokens = self._continued(request)
        if held is None:
            return self._after_prefix(request) or self._anew(request)
        return self._going_on(request, held, cached_tokens)

    def _going_on(self, request: ScheduledRequest, held: IdleSession, cached_tokens: int) -> Start | None:
        """A start with the KV of an idle session, which is its own or nobody's."""
        gone = self._own(request, held)
        lacking = _beyond(request, held, cached_tokens)
        evicted = self._evictions(request, gone, lambda free: free.holds(lacking), held)
        if evicted is None:
            return None
        reserved = held.resources.plus(lacking)
        return Start(reserved, held.first_actor, held, cached_tokens, (*gone, *evicted))

    def _after_prefix(self, request: ScheduledRequest) -> Start | None:
        """A start on blocks of another idle session that begins as the prompt does."""
        found = None if self.prefixes is None else self.prefixes.find(request, self.idle)
        if found is None or self.prefixes is None:
            return None
        source, cached_tokens = found
        if self.prefixes.is_taken_over(source, cached_tokens):
            return self._going_on(request, source, self.reusable(request.request_id, source))
        gone = self._own(request, source)
        shared = self.prefixes.first(source, cached_tokens)
        need = request.need.starting_at(source.first_actor).minus(shared)
        evicted = self._evictions(request, gone, lambda free: free.holds(need), source)
        if evicted is None:
            return None
        return Start(need, source.first_actor, None, cached_tokens, (*gone, *evicted), source)

    def _own(self, request: ScheduledRequest, held: IdleSession | None) -> list[IdleSession]:
        """The idle session of the request's name, which is evicted when the request starts otherwise than with it."""
        own = self.idle.get(request.session_name)
        return [] if own is None or own is held else [own]

    def _anew(self, request: ScheduledRequest) -> Start | None:
        """A start without KV. An idle session of the request's name is evicted, since its KV can't be used."""
        gone = self._own(request, None)
        evicted = self._evictions(request, gone, lambda free: first_actor(request.need, free) is not None)
        gone += evicted or []
        actor = None if evicted is None else first_actor(request.need, self._free_after(gone))
        if actor is None:
            return None
        return Start(request.need.starting_at(actor), actor, None, 0, tuple(gone))

    def _continued(self, request: ScheduledRequest) -> tuple[IdleSession | None, int]:
        """The idle session that a request can go on with, and the prompt tokens that it saves."""
        held = self.idle.get(request.session_name)
        if held is None:
            return None, 0
        if request.reuse is None or request.reuse[0] is not held:
            request.reuse = held, self.reusable(request.request_id, held)
        cached_tokens = request.reuse[1]
        return (held, cached_tokens) if cached_tokens else (None, 0)

    def _evictions(
        self,
        request: ScheduledRequest,
        gone: Sequence[IdleSession],
        fits: Callable[[Resources], bool],
        spared: IdleSession | None = None,
    ) -> list[IdleSession] | None:
        """Which idle sessions of other names to evict beside those that are `gone` anyway, so that it `fits`."""
        others = (one for one in self.idle.evictable(request.session_name) if one is not spared)
        return evictions(others, _session_names(self.waiting), gone, self.free, fits)

    def _free_after(self, gone: Iterable[IdleSession]) -> Resources:
        """What is free once these are evicted."""
        return self.free.plus(freed_by(gone, self.idle.nothing))


def _session_names(requests: Iterable[ScheduledRequest]) -> set[str]:
    return {request.session_name for request in requests if request.session_name is not None}


def _beyond(request: ScheduledRequest, held: IdleSession, cached_tokens: int) -> Resources:
    """What a request must reserve beside the resources of `held` to go on after its first `cached_tokens`."""
    need = request.need.starting_at(held.first_actor)
    kept = None if held.shared is None else held.shared.first(cached_tokens)
    return (need if kept is None else need.minus(kept)).beyond(held.resources)
