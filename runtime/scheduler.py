"""What the next step does: decode first, then prompt chunks within a token budget. Pure; no I/O, no clock.

Room is reserved when a request is admitted and returned when it is released, so nothing that runs can run out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from moorage.workers.counting import counted
from moorage.workers.errors import ResourceExhausted


@dataclass(frozen=True, slots=True)
class Room:
    """Countable room: pages in each KV actor, and device slots."""

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


@dataclass(frozen=True, slots=True)
class Limits:
    """Budgets of the scheduler."""

    room: Room
    max_step_tokens: int
    """Tokens of one step."""
    decode_prefill_tokens: int
    """Prompt tokens of a step in which others decode, so that their tokens keep flowing."""
    max_running: int
    max_waiting: int


@dataclass(slots=True)
class Job:
    """One request as the scheduler sees it."""

    job_id: int
    prompt_tokens: int
    need: Room
    quantum: int = 1
    """Prompt chunks end at multiples of this (the execution block), or at the prompt's end."""
    prefilled_tokens: int = 0
    """Prompt tokens done, those found in a cache included."""

    @property
    def decoding(self) -> bool:
        """Whether the whole prompt is done."""
        return self.prefilled_tokens >= self.prompt_tokens


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """Prompt tokens [start, start + count) of a job."""

    job_id: int
    start: int
    count: int


@dataclass(frozen=True, slots=True)
class Step:
    """One step's work."""

    admitted: tuple[int, ...] = ()
    decodes: tuple[int, ...] = ()
    prefills: tuple[PrefillChunk, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to run."""
        return not (self.decodes or self.prefills)


@dataclass(slots=True)
class Scheduler:
    """Waiting jobs in order of arrival, running jobs, and the room they hold."""

    limits: Limits
    free: Room = field(init=False)
    waiting: deque[Job] = field(default_factory=deque)
    running: dict[int, Job] = field(default_factory=dict)
    _turn: deque[int] = field(default_factory=deque)
    """Prefilling jobs; the first is served first, then goes to the end."""

    def __post_init__(self) -> None:
        self.free = self.limits.room

    def add(self, job: Job) -> None:
        """Queues a job. Raises ResourceExhausted, changing nothing, if the queue is full."""
        if len(self.waiting) >= self.limits.max_waiting:
            raise ResourceExhausted(
                f"the queue is full ({counted(self.limits.max_waiting, 'waiting request')}); try again later, "
                "or raise server.max_queued_requests",
                retry_after_s=5.0,
            )
        self.waiting.append(job)

    def release(self, job_id: int) -> Room | None:
        """Forgets a job. The room of a running one is returned: keep it, or give it back with `give`."""
        job = self.running.pop(job_id, None)
        if job is None:
            self.waiting = deque(j for j in self.waiting if j.job_id != job_id)
            return None
        if job_id in self._turn:
            self._turn.remove(job_id)
        return job.need

    def give(self, room: Room) -> None:
        """Makes room that a job held free again."""
        self.free = self.free.plus(room)

    def blocked(self) -> Job | None:
        """The job that waits for room (not for its turn), if there is one."""
        if self.waiting and len(self.running) < self.limits.max_running:
            head = self.waiting[0]
            return None if self.free.holds(head.need) else head
        return None

    def next_step(self) -> Step:
        """Admits what fits, then packs one step. The caller reports its prefills with `prefilled`."""
        admitted = self._admit()
        decodes = [job.job_id for job in self.running.values() if job.decoding]
        decodes = decodes[: self.limits.max_step_tokens]
        budget = self.limits.max_step_tokens - len(decodes)
        if decodes:
            budget = min(budget, self.limits.decode_prefill_tokens)
        return Step(tuple(admitted), tuple(decodes), tuple(self._prefills(budget)))

    def prefilled(self, chunks: Sequence[PrefillChunk]) -> None:
        """These chunks have run."""
        for chunk in chunks:
            job = self.running.get(chunk.job_id)
            if job is None:
                continue
            job.prefilled_tokens += chunk.count
            if job.decoding:
                self._turn.remove(job.job_id)

    def _admit(self) -> list[int]:
        admitted = []
        while self.waiting and len(self.running) < self.limits.max_running:
            if not self.free.holds(self.waiting[0].need):
                break
            job = self.waiting.popleft()
            self.free = self.free.minus(job.need)
            self.running[job.job_id] = job
            if not job.decoding:
                self._turn.append(job.job_id)
            admitted.append(job.job_id)
        return admitted

    def _prefills(self, budget: int) -> list[PrefillChunk]:
        """Equal shares; what a short prompt leaves goes to longer ones. The first in turn always moves on."""
        chunks: list[PrefillChunk] = []
        jobs = sorted((self.running[job_id] for job_id in self._turn), key=_remaining)
        for place, job in enumerate(jobs):
            count = _chunk_tokens(job, budget // (len(jobs) - place))
            if count == 0 and job.job_id == self._turn[0]:
                to_boundary = job.quantum - job.prefilled_tokens % job.quantum
                count = min(to_boundary, _remaining(job))
            if count:
                chunks.append(PrefillChunk(job.job_id, job.prefilled_tokens, count))
                budget = max(0, budget - count)
        self._turn.rotate(-1)
        return chunks


def _remaining(job: Job) -> int:
    return job.prompt_tokens - job.prefilled_tokens


def _chunk_tokens(job: Job, share: int) -> int:
    """Most tokens of the job within `share`, ending where its quantum allows."""
    end = job.prefilled_tokens + share
    if end >= job.prompt_tokens:
        return job.prompt_tokens - job.prefilled_tokens
    return max(0, end // job.quantum * job.quantum - job.prefilled_tokens)
