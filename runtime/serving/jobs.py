"""What the scheduler is told and what it answers: limits, jobs, steps, and why a job waits."""

from __future__ import annotations

from dataclasses import dataclass

from moorage.runtime.serving.room import Room
from moorage.runtime.serving.session_cache import Conversation


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


@dataclass(slots=True, eq=False)
class Job:
    """One request as the scheduler sees it."""

    job_id: int
    prompt_tokens: int
    need: Room
    """For the whole session; its pages are counted for a session that starts at actor 0."""
    quantum: int = 1
    """Prompt chunks end at multiples of this (the execution block), or at the prompt's end."""
    session: str | None = None
    """Name of the session that the request continues or begins."""
    prefilled_tokens: int = 0
    """Prompt tokens done, those found in a cache included."""
    room: Room | None = None
    """What it holds, from its admission on."""
    first_actor: int = 0
    """The actor of its session's first stripe, from its admission on."""
    continues: Conversation | None = None
    """The idle session whose KV it goes on with, from its admission on."""
    paused: bool = False
    """Whether it rests, keeping its room, since its client has not read what came so far."""
    reuse: tuple[Conversation, int] | None = None
    """The idle session that was last compared with the prompt, and how many tokens it saves."""

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
    evicted: tuple[Conversation, ...] = ()
    """Idle sessions whose room the admitted jobs have got."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to run."""
        return not (self.decodes or self.prefills)

    @property
    def job_ids(self) -> tuple[int, ...]:
        """Every job that the step is about, once."""
        return tuple(dict.fromkeys((*self.admitted, *self.decodes, *(c.job_id for c in self.prefills))))


@dataclass(frozen=True, slots=True)
class Wait:
    """Why a job was not admitted yet."""

    job: Job
    waits_for: str
    """memory, device_slots, running, session or queue."""
    place: int
    """How many jobs wait before it."""
    lacking: Room | None = None
    """For memory: what must be free, beside what the job can go on with."""
