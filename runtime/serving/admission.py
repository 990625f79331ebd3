"""Which waiting requests may start: room is reserved for all of a request's tokens before its first step. Pure.

A waiting request reserves nothing. The KV of an idle session is room that can be had, also when a request for that
session waits: it then begins anew. So whenever nothing runs, the first of the waiting requests can start.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from moorage.runtime.serving.jobs import Job, Limits, Wait
from moorage.runtime.serving.room import Room, first_actor
from moorage.runtime.serving.session_cache import Conversation, Conversations

Reusable = Callable[[int, Conversation], int]
"""How many prompt tokens of a job an idle session's KV saves; with 0 the job begins the session anew."""


@dataclass(frozen=True, slots=True)
class Start:
    """How a job can start now."""

    room: Room
    first_actor: int
    continues: Conversation | None
    cached_tokens: int
    evicted: tuple[Conversation, ...]


@dataclass(slots=True)
class Admission:
    """Waiting jobs in order of arrival, idle sessions, and the room that nobody holds."""

    limits: Limits
    reusable: Reusable
    free: Room = field(init=False)
    waiting: deque[Job] = field(default_factory=deque)
    idle: Conversations = field(default_factory=Conversations)

    def __post_init__(self) -> None:
        self.free = self.limits.room

    def admit(self, running: Mapping[int, Job]) -> tuple[list[Job], list[Conversation]]:
        """Starts what fits beside `running`, in order of arrival; returns it and the sessions evicted for it.

        A job whose session is in use is passed over. No job passes another that waits for room.
        """
        admitted: list[Job] = []
        evicted: list[Conversation] = []
        busy = _sessions(running.values())
        for job in tuple(self.waiting):
            if len(running) + len(admitted) >= self.limits.max_running:
                break
            if job.session in busy:
                continue
            start = self._start_of(job)
            if start is None:
                break
            self._begin(job, start)
            admitted.append(job)
            evicted += start.evicted
            busy |= _sessions((job,))
        return admitted, evicted

    def withdraw(self, job_id: int) -> None:
        """Forgets a waiting job."""
        self.waiting = deque(job for job in self.waiting if job.job_id != job_id)

    def give(self, room: Room) -> None:
        """A job no longer holds this room."""
        self.free = self.free.plus(room)

    def keep(self, room: Room, conversation: Conversation) -> None:
        """A job that held `room` leaves KV behind; what it held beyond that is free again."""
        self.free = self.free.plus(room).minus(conversation.room)
        self.idle.keep(conversation)

    def waits(self, running: Mapping[int, Job]) -> list[Wait]:
        """Why each waiting job waits, in order."""
        busy, blocked, found = _sessions(running.values()), False, []
        for place, job in enumerate(self.waiting):
            if job.session in busy:
                found.append(Wait(job, "session", place))
                continue
            wait = Wait(job, "queue", place) if blocked else self._wait_of(job, place, len(running))
            blocked |= wait.waits_for != "queue"
            found.append(wait)
        return found

    def _wait_of(self, job: Job, place: int, num_running: int) -> Wait:
        """Of a job that is passed over for nothing but room; "queue" when the next step admits it."""
        if num_running >= self.limits.max_running:
            return Wait(job, "running", place)
        if job.need.slots > self.free.slots:
            return Wait(job, "device_slots", place)
        if self._start_of(job) is None:
            held, _ = self._continued(job)
            return Wait(job, "memory", place, job.need if held is None else _beyond(job, held))
        return Wait(job, "queue", place)

    def _begin(self, job: Job, start: Start) -> None:
        self.waiting.remove(job)
        for conversation in start.evicted:
            self.idle.remove(conversation)
            self.free = self.free.plus(conversation.room)
        if start.continues is not None:
            self.idle.remove(start.continues)
            self.free = self.free.plus(start.continues.room)
        self.free = self.free.minus(start.room)
        job.room, job.first_actor, job.continues = start.room, start.first_actor, start.continues
        job.prefilled_tokens = start.cached_tokens

    def _start_of(self, job: Job) -> Start | None:
        """How a job can start now, evicting idle sessions where that makes it fit; None if it can't."""
        if job.need.slots > self.free.slots:
            return None
        held, cached_tokens = self._continued(job)
        if held is None:
            return self._anew(job)
        lacking = _beyond(job, held)
        evicted = self._evictions(job, self.free, lambda free: free.holds(lacking))
        if evicted is None:
            return None
        return Start(held.room.plus(lacking), held.first_actor, held, cached_tokens, tuple(evicted))

    def _anew(self, job: Job) -> Start | None:
        """A start without KV; what is idle under the session's name goes, since it can't be used."""
        own = self.idle.get(job.session)
        free = self.free if own is None else self.free.plus(own.room)
        evicted = self._evictions(job, free, lambda room: first_actor(job.need, room) is not None)
        if evicted is None:
            return None
        actor = first_actor(job.need, _with(free, evicted))
        assert actor is not None
        gone = evicted if own is None else [own, *evicted]
        return Start(job.need.starting_at(actor), actor, None, 0, tuple(gone))

    def _continued(self, job: Job) -> tuple[Conversation | None, int]:
        """The idle session that a job can go on with, and the prompt tokens that it saves."""
        held = self.idle.get(job.session)
        if held is None:
            return None, 0
        if job.reuse is None or job.reuse[0] is not held:
            job.reuse = held, self.reusable(job.job_id, held)
        cached_tokens = job.reuse[1]
        return (held, cached_tokens) if cached_tokens else (None, 0)

    def _evictions(self, job: Job, free: Room, fits: Callable[[Room], bool]) -> list[Conversation] | None:
        """Of the idle sessions of other names, those that must go until it `fits`; None if all of them don't do.

        Sessions that no waiting request asks for go first, the longest unused before others, and none that
        makes no difference.
        """
        if fits(free):
            return []
        own = self.idle.get(job.session)
        if self.idle.room is None:
            return None
        room = self.idle.room if own is None else self.idle.room.minus(own.room)
        if not fits(free.plus(room)):
            return None
        evicted: list[Conversation] = []
        awaited = _sessions(self.waiting)
        others = [held for held in self.idle if held is not own]
        for victim in sorted(others, key=lambda held: held.name in awaited):
            evicted.append(victim)
            free = free.plus(victim.room)
            if fits(free):
                break
        for victim in evicted[::-1]:
            if fits(free.minus(victim.room)):
                free = free.minus(victim.room)
                evicted.remove(victim)
        return evicted


def _sessions(jobs: Iterable[Job]) -> set[str]:
    return {job.session for job in jobs if job.session is not None}


def _beyond(job: Job, held: Conversation) -> Room:
    """What a job must get to go on with `held`."""
    return job.need.starting_at(held.first_actor).beyond(held.room)


def _with(free: Room, evicted: Sequence[Conversation]) -> Room:
    """What is free once these are gone."""
    for conversation in evicted:
        free = free.plus(conversation.room)
    return free
