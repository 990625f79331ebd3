"""What the next step does: decode first, then prompt chunks within a token budget. Pure; no I/O, no clock.

Room is reserved when a request is admitted and freed when it is released, so nothing that runs can run out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field

from moorage.runtime.serving.admission import Admission, Reusable
from moorage.runtime.serving.jobs import Job, Limits, PrefillChunk, Step, Wait
from moorage.runtime.serving.room import Room
from moorage.runtime.serving.session_cache import Conversation, Conversations
from moorage.workers.counting import counted
from moorage.workers.errors import ResourceExhausted


@dataclass(slots=True)
class Scheduler:
    """Running jobs with the room they hold, and the admission of those that wait."""

    limits: Limits
    reusable: InitVar[Reusable]
    running: dict[int, Job] = field(default_factory=dict)
    _admission: Admission = field(init=False)
    _turn: deque[int] = field(default_factory=deque)
    """Prefilling jobs; the first is served first, then goes to the end."""

    def __post_init__(self, reusable: Reusable) -> None:
        self._admission = Admission(self.limits, reusable)

    @property
    def free(self) -> Room:
        """What neither a running job nor an idle session holds."""
        return self._admission.free

    @property
    def waiting(self) -> Sequence[Job]:
        """Jobs in order of arrival."""
        return self._admission.waiting

    @property
    def idle(self) -> Conversations:
        """Sessions whose KV no job uses now."""
        return self._admission.idle

    def add(self, job: Job, retry_after_s: float | None = None) -> None:
        """Queues a job. Raises ResourceExhausted, changing nothing, if the queue is full."""
        if len(self._admission.waiting) >= self.limits.max_waiting:
            raise ResourceExhausted(
                f"the queue is full ({counted(self.limits.max_waiting, 'waiting request')}); try again later, "
                "or raise server.max_queued_requests",
                retry_after_s=retry_after_s,
            )
        self._admission.waiting.append(job)

    def release(self, job_id: int) -> None:
        """Forgets a job; the room of a running one is free again."""
        job = self._end(job_id)
        if job is not None and job.room is not None:
            self._admission.give(job.room)

    def keep(self, job_id: int, conversation: Conversation) -> None:
        """Ends a running job whose KV stays; what it held beyond the conversation's room is free again."""
        job = self._end(job_id)
        assert job is not None
        assert job.room is not None
        self._admission.keep(job.room, conversation)

    def waits(self) -> list[Wait]:
        """Why each waiting job waits, in order."""
        return self._admission.waits(self.running)

    def next_step(self) -> Step:
        """Admits what fits, then packs one step. The caller reports its prefills with `prefilled`."""
        admitted, evicted = self._admission.admit(self.running)
        for job in admitted:
            self.running[job.job_id] = job
            self._turn.append(job.job_id)
        decodes = [job.job_id for job in self.running.values() if job.decoding and not job.paused]
        decodes = decodes[: self.limits.max_step_tokens]
        budget = self.limits.max_step_tokens - len(decodes)
        if decodes:
            budget = min(budget, self.limits.decode_prefill_tokens)
        prefills = tuple(self._prefills(budget))
        return Step(tuple(job.job_id for job in admitted), tuple(decodes), prefills, tuple(evicted))

    def prefilled(self, chunks: Sequence[PrefillChunk]) -> None:
        """These chunks have run."""
        for chunk in chunks:
            job = self.running.get(chunk.job_id)
            if job is None:
                continue
            job.prefilled_tokens += chunk.count
            if job.decoding:
                self._turn.remove(job.job_id)

    def _end(self, job_id: int) -> Job | None:
        """Takes a job out; returns it if it ran."""
        job = self.running.pop(job_id, None)
        if job is None:
            self._admission.withdraw(job_id)
        elif job_id in self._turn:
            self._turn.remove(job_id)
        return job

    def _prefills(self, budget: int) -> list[PrefillChunk]:
        """Equal shares; what a short prompt leaves goes to longer ones. The first in turn always moves on."""
        chunks: list[PrefillChunk] = []
        turn = [job for job_id in self._turn if not (job := self.running[job_id]).paused]
        jobs = sorted(turn, key=_remaining)
        for place, job in enumerate(jobs):
            count = _chunk_tokens(job, budget // (len(jobs) - place))
            if count == 0 and job is turn[0]:
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
