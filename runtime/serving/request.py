"""One request while the coordinator works on it: its state, its part of a step's plan, the session that it leaves."""

from __future__ import annotations

import asyncio
import re
from array import array
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field

import structlog

from moorage.runtime.planning.trained_length import Reach
from moorage.runtime.serving.block_shares import BlockMasses
from moorage.runtime.serving.capacity import Capacity
from moorage.runtime.serving.protocol import Event
from moorage.runtime.serving.scheduled_request import PrefillChunk, ScheduledRequest
from moorage.runtime.serving.session_cache import IdleSession, StoredKv
from moorage.runtime.serving.sessions.cut_answers import draw_of, drawn_before
from moorage.runtime.serving.sessions.prefixes import BlockChain
from moorage.runtime.serving.trace_context import trace_of_caller
from moorage.runtime.text.decoder import IncrementalDecoder
from moorage.runtime.text.grammar import Guide
from moorage.runtime.text.stop_strings import StopMatcher
from moorage.workers.errors import MoorageError
from moorage.workers.spec import ContinueSession, MemorySpec, OpenSession, SamplingSpec, Segment
from moorage.workers.token_ids import TokenIds

log = structlog.get_logger()


@dataclass(slots=True)
class Request:
    """Mutable state of one request; times are of one monotonic clock, in seconds."""

    request_id: str
    """Names the request to its client, in the log and in the status."""
    session_id: int
    """Names the session to the worker: a new one, or that of the idle session which the request continues."""
    prompt: TokenIds
    memory: MemorySpec
    sampling: SamplingSpec
    max_new_tokens: int
    """0 asks for the prompt's log-probabilities instead of new tokens."""
    block_size: int
    arrived_s: float
    decoder: IncrementalDecoder | None
    scheduled: ScheduledRequest
    """The request as the scheduler sees it."""
    reach: Reach = Reach(None, "")
    """How far the positions of this request hold."""
    preset_differs: tuple[str, ...] = ()
    """What its preset says of the store, and the cluster has otherwise."""
    matcher: StopMatcher = field(default_factory=lambda: StopMatcher(()))
    guide: Guide | None = None
    """Which tokens may come next; None allows all."""
    ignore_eos: bool = False
    scores_prompt: bool = False
    chain: BlockChain | None = None
    """Hashes of its blocks; None where no other request may use them."""
    cached_tokens: int = 0
    num_drawn: int = 0
    """Tokens at the end of the prompt that are an answer which was cut, and which this one goes on with."""
    dram_bytes: int = 0
    generated: list[int] = field(default_factory=list)
    events: asyncio.Queue[Event | Exception] = field(default_factory=asyncio.Queue)
    finished: bool = False
    failed: bool = False
    """Whether its KV can't be trusted. Its session is then dropped even when it has a name."""
    outcome: str = "cancelled"
    """How it ended: stop, length, cancelled, or failed with the kind of error."""
    admitted_s: float | None = None
    prefilled_s: float | None = None
    token_s: list[float] = field(default_factory=list)
    chosen_blocks: list[float] = field(default_factory=list)
    chosen_keys: list[float] = field(default_factory=list)
    recall: list[float] = field(default_factory=list)
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    """The drafted tokens that were verified to be the answer's."""
    recall_by_head: array[float] = field(default_factory=lambda: array("f"))
    """Recall of every head of the sampled layers and steps."""
    block_masses: BlockMasses = field(default_factory=BlockMasses)
    trace: Mapping[str, str] = field(default_factory=trace_of_caller)  # headers of W3C Trace Context
    prompt_scored: int = 1
    """Position of the next prompt log-probability."""

    @property
    def is_score(self) -> bool:
        """Whether the prompt's own log-probabilities are asked for."""
        return self.max_new_tokens == 0

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt and most generated tokens."""
        return len(self.prompt) + self.max_new_tokens

    @property
    def remaining_new_tokens(self) -> int:
        """Tokens that may yet be generated."""
        return self.max_new_tokens - len(self.generated)

    def open_session(self, now_s: float) -> OpenSession | ContinueSession:
        """Admits the request. The log links its id to the worker's session, which is opened or continued."""
        self.admitted_s = now_s
        held = self.scheduled.continues
        self.cached_tokens = self.scheduled.prefilled_tokens
        if held is not None:
            self.session_id, self.num_drawn = held.session_id, self.goes_on_with(held)
        log.info(
            "request admitted",
            request_id=self.request_id,
            session_id=self.session_id,
            cached_tokens=self.cached_tokens,
        )
        if held is None and self.scheduled.source is None:
            return OpenSession(
                self.session_id,
                self.num_tokens,
                len(self.prompt),
                self.memory,
                self.sampling,
                self.scheduled.first_actor,
            )
        return ContinueSession(
            self.session_id,
            self.cached_tokens,
            self.num_tokens,
            len(self.prompt) - self.num_drawn,
            self.memory,
            self.sampling,
            self.prompt[: self.cached_tokens] if self.sampling.counts_tokens or self.memory.verify else (),
            self.num_drawn,
        )

    def goes_on_with(self, held: IdleSession) -> int:
        """Tokens at the end of the prompt that are the answer of its own idle session, if it goes on with that."""
        own = held.name == self.scheduled.session_name
        return drawn_before(held.stored, self.prompt, self.memory, self.sampling) if own else 0

    def decode_segment(self) -> Segment:
        """The newest token, which gives the next one."""
        start = len(self.prompt) + len(self.generated) - 1
        allowed = None if self.guide is None else self.guide.allowed
        return Segment(self.session_id, start, (self.generated[-1],), sample=True, allowed=allowed)

    def prefill_segment(self, chunk: PrefillChunk) -> Segment:
        """The prompt tokens of a chunk; the last chunk gives the first new token."""
        sample = chunk.end == len(self.prompt) and not self.is_score
        return Segment(
            self.session_id,
            chunk.start,
            self.prompt[chunk.start : chunk.end],
            sample=sample,
            prompt_logprobs=self.scores_prompt,
            allowed=self.guide.allowed if sample and self.guide is not None else None,
        )

    def fail(self, error: Exception) -> None:
        """Ends the request with an error, and marks its KV as lost."""
        self.failed = True
        self.end(error)

    def fail_step(self, error: MoorageError) -> None:
        """Fails as `fail` does, with an error of the worker, which names the request by its session."""
        named = copy(error)
        named.args = (re.sub(rf"\bsession {self.session_id}\b", f"request {self.request_id}", str(error)),)
        self.fail(named)

    def end(self, error: Exception) -> None:
        """Ends the request with an error; its KV is still good."""
        self.outcome = f"failed: {type(error).__name__}"
        self.events.put_nowait(error)

    def idle_session(self, capacity: Capacity, now_s: float = 0.0) -> IdleSession | None:
        """The session that the request leaves behind; None when it has no name, or no KV that can be used."""
        name = self.scheduled.session_name
        if name is None or self.failed or self.admitted_s is None:
            return None
        # The newest token has no K and V yet.
        tokens = self.prompt[: self.scheduled.prefilled_tokens].plus(self.generated[:-1])
        if not tokens:
            return None
        first_actor = self.scheduled.first_actor
        # The last verified draft may hold tokens beyond the end of the answer.
        most = min(len(tokens) + self.memory.most_drafted, self.num_tokens)
        resources, shared = capacity.idle(most).starting_at(first_actor), self.scheduled.shared
        if shared is not None:
            resources = resources.minus(shared.first(most))
        digests = () if self.chain is None else self.chain.of(tokens)
        memory, layout = self.memory.replace(inspect=False), capacity.layout
        draw = draw_of(self.sampling, memory, layout, self.generated, capacity.windows is not None)
        before = len(self.prompt) - self.num_drawn
        stored = StoredKv(tokens, before, memory, self._first_held(capacity, most), draw)
        return IdleSession(name, self.session_id, stored, resources, first_actor, shared, digests, now_s)

    def _first_held(self, capacity: Capacity, num_tokens: int) -> int:
        """The first token that rings of sliding-window layers hold; what was overwritten before stays so."""
        if capacity.windows is None:
            return 0
        held = self.scheduled.continues
        before = 0 if held is None else held.stored.first_held
        return max(before, capacity.windows.first_held(num_tokens))

    def is_whole(self, token_id: int) -> bool:
        """Tells the grammar of the newest token; whether the answer is whole by it."""
        if self.guide is None:
            return False
        self.guide.accept(token_id)
        return self.guide.ended

    def text_of(self, token_id: int) -> str:
        """New text that is complete and can't become a stop string."""
        if self.decoder is None:
            return ""
        return self.matcher.push(self.decoder.push(token_id))

    def rest_of_text(self) -> str:
        """Text that was held back, at the end."""
        if self.decoder is None:
            return ""
        return self.matcher.push(self.decoder.flush()) + self.matcher.flush()
