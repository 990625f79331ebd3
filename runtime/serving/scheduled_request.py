"""Records of the scheduler: its limits, scheduled requests, steps, and why a request waits."""

from __future__ import annotations

from dataclasses import dataclass, field

from moorage.runtime.serving.capacity import Resources
from moorage.runtime.serving.session_cache import IdleSession
from moorage.runtime.serving.sessions.shared_blocks import SharedBlocks


@dataclass(frozen=True, slots=True)
class Limits:
    """Budgets of the scheduler."""

    resources: Resources
    """What all requests and idle sessions may hold together."""
    max_step_tokens: int
    """Tokens of one step."""
    decode_prefill_tokens: int
    """Prompt tokens of a step in which other requests decode, so that their tokens keep flowing."""
    max_running: int
    max_waiting: int
    """Requests of each tenant."""
    max_wait_s: float | None = None
    """The longest wait that a request may expect."""


@dataclass(slots=True, eq=False)
class ScheduledRequest:
    """One request as the scheduler sees it."""

    request_id: str
    """Names the request to its client, in the log and in the status."""
    prompt_tokens: int
    need: Resources
    """What the whole session needs; its pages are counted for a session that starts at actor 0."""
    chunk_alignment: int = 1
    """Prompt chunks end at multiples of this (the execution block), or at the prompt's end."""
    session_name: str | None = None
    """Name of the session that the request continues or begins."""
    tenant: str = ""
    """Whose request it is; tenants take turns."""
    digests: tuple[bytes, ...] = ()
    """Hashes of the prompt's full blocks, where it may use those of other sessions."""
    prefilled_tokens: int = 0
    """Prompt tokens done, those found in a cache included."""
    reservation: Resources = field(init=False)
    """What it holds; nothing before its admission."""
    first_actor: int = 0
    """The actor of its session's first stripe, from its admission on."""
    shared: SharedBlocks | None = None
    """Its session's first blocks, where other sessions hold them as well; `reservation` is for all others."""
    continues: IdleSession | None = None
    """The idle session whose KV it goes on with, from its admission on."""
    source: IdleSession | None = None
    """The idle session whose first blocks it shares, from its admission on."""
    paused: bool = False
    """Whether it gets no step, since its client has not read the latest events. It keeps its reservation."""
    reuse: tuple[IdleSession, int] | None = None
    """The idle session that was last compared with the prompt, and how many tokens it saves."""

    def __post_init__(self) -> None:
        self.reservation = Resources((0,) * len(self.need.pages), 0)

    @property
    def decoding(self) -> bool:
        """Whether the whole prompt is done."""
        return self.prefilled_tokens >= self.prompt_tokens

    @property
    def remaining_tokens(self) -> int:
        """Tokens of the prompt that are still to be read."""
        return max(0, self.prompt_tokens - self.prefilled_tokens)

    def chunk_tokens(self, share: int) -> int:
        """Most prompt tokens within `share` that end where `chunk_alignment` allows."""
        end = self.prefilled_tokens + share
        if end >= self.prompt_tokens:
            return self.remaining_tokens
        return max(0, end // self.chunk_alignment * self.chunk_alignment - self.prefilled_tokens)

    def shortest_chunk(self) -> int:
        """Prompt tokens up to the next place where a chunk may end."""
        to_boundary = self.chunk_alignment - self.prefilled_tokens % self.chunk_alignment
        return min(to_boundary, self.remaining_tokens)


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """Prompt tokens [start, start + count) of a request."""

    request_id: str
    start: int
    count: int

    @property
    def end(self) -> int:
        """Position after the last token."""
        return self.start + self.count


@dataclass(frozen=True, slots=True)
class Step:
    """One step's work."""

    admitted: tuple[str, ...] = ()
    decodes: tuple[str, ...] = ()
    prefills: tuple[PrefillChunk, ...] = ()
    evicted: tuple[IdleSession, ...] = ()
    """Idle sessions whose resources the admitted requests hold now."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to run."""
        return not (self.decodes or self.prefills)

    @property
    def prompt_tokens(self) -> int:
        """Prompt tokens of all chunks."""
        return sum(chunk.count for chunk in self.prefills)

    @property
    def request_ids(self) -> tuple[str, ...]:
        """Every request that the step is about, once."""
        return tuple(dict.fromkeys((*self.admitted, *self.decodes, *(c.request_id for c in self.prefills))))


@dataclass(frozen=True, slots=True)
class Wait:
    """Why a request was not admitted yet."""

    request: ScheduledRequest
    waits_for: str
    """memory, device_slots, running, session or queue."""
    place: int
    """How many requests wait before it."""
    lacking: Resources | None = None
    """Where it waits for memory: what must be free, beside what the request can go on with."""
    cached_tokens: int = 0
    """Prompt tokens that the store holds already, of a request that can start now."""
