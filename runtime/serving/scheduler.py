"""What the next step does: decode first, then prompt chunks within a token budget. Pure; no I/O, no clock.

Resources are reserved when a request is admitted and freed when it is released, so nothing that runs can run out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field
from itertools import islice

from moorage.runtime.serving.admission import Admission, Reusable
from moorage.runtime.serving.capacity import Resources
from moorage.runtime.serving.fair_order import in_turn
from moorage.runtime.serving.scheduled_request import Limits, PrefillChunk, ScheduledRequest, Step, Wait
from moorage.runtime.serving.session_cache import IdleSession, SessionCache
from moorage.runtime.serving.sessions.prefixes import Prefixes
from moorage.workers.counting import counted
from moorage.workers.errors import ResourceExhausted


@dataclass(slots=True)
class Scheduler:
    """Running requests with their reservations, and the admission of those that wait."""

    limits: Limits
    reusable: InitVar[Reusable]
    prefixes: InitVar[Prefixes | None] = None
    running: dict[str, ScheduledRequest] = field(default_factory=dict)
    _admission: Admission = field(init=False)
    _turn: deque[str] = field(default_factory=deque)
    """Prefilling requests; the first is served first, then goes to the end."""

    def __post_init__(self, reusable: Reusable, prefixes: Prefixes | None) -> None:
        self._admission = Admission(self.limits, reusable, prefixes)

    @property
    def free(self) -> Resources:
        """What neither a running request nor an idle session holds."""
        return self._admission.free

    @property
    def waiting(self) -> Sequence[ScheduledRequest]:
        """Requests in the order in which they start: tenants by turns, each in order of arrival."""
        return in_turn(self._admission.waiting, self.running.values())

    @property
    def idle(self) -> SessionCache:
        """Sessions whose KV no request uses now."""
        return self._admission.idle

    def add(self, request: ScheduledRequest) -> None:
        """Queues a request. Raises ResourceExhausted, changing nothing, if its tenant's queue is full."""
        self.check_queue(request.tenant)
        self._admission.waiting.append(request)

    def check_queue(self, tenant: str) -> None:
        """Raises ResourceExhausted if a tenant's queue is full."""
        if sum(one.tenant == tenant for one in self._admission.waiting) >= self.limits.max_waiting:
            raise ResourceExhausted(
                f"the queue is full ({counted(self.limits.max_waiting, 'waiting request')}); try again later, "
                "or raise server.max_queued_requests"
            )

    def release(self, request_id: str) -> None:
        """Removes a request and frees its reservation."""
        request = self.running.get(request_id)
        if request is None:
            self._admission.withdraw(request_id)
        else:
            self._stop(request)
            self._admission.release(request)

    def keep(self, request_id: str, session: IdleSession) -> None:
        """Ends a running request whose KV stays; what it reserved beyond the session's resources is free again."""
        request = self.running[request_id]
        self._stop(request)
        self._admission.keep(request.reservation, session)

    def hold(self, session: IdleSession) -> None:
        """Adds an idle session, whose resources are free now."""
        self._admission.keep(self.idle.nothing, session)

    def discard(self, session: IdleSession) -> None:
        """Frees what an idle session holds."""
        self._admission.discard(session)

    @property
    def blocked(self) -> str | None:
        """The request that waits first although nothing runs: pinned sessions hold what it needs."""
        return None if self.running or not self.waiting else self.waiting[0].request_id

    def waits(self) -> list[Wait]:
        """Why each waiting request waits, in order."""
        return self._admission.waits(self.running)

    def next_step(self) -> Step:
        """Admits what fits, then packs one step. The caller reports its prefills with `prefilled`."""
        admitted, evicted = self._admission.admit(self.running)
        for request in admitted:
            self.running[request.request_id] = request
            self._turn.append(request.request_id)
        ready = (one.request_id for one in self.running.values() if one.decoding and not one.paused)
        decodes = tuple(islice(ready, self.limits.max_step_tokens))
        budget = self.limits.max_step_tokens - len(decodes)
        if decodes:
            budget = min(budget, self.limits.decode_prefill_tokens)
        prefills = tuple(self._prefills(budget))
        return Step(tuple(request.request_id for request in admitted), decodes, prefills, tuple(evicted))

    def prefilled(self, chunks: Sequence[PrefillChunk]) -> None:
        """Records that these chunks have run."""
        for chunk in chunks:
            request = self.running.get(chunk.request_id)
            if request is None:
                continue
            request.prefilled_tokens += chunk.count
            if request.decoding:
                self._turn.remove(request.request_id)

    def _stop(self, request: ScheduledRequest) -> None:
        """No later step has a part of this request."""
        del self.running[request.request_id]
        if request.request_id in self._turn:
            self._turn.remove(request.request_id)

    def _prefills(self, budget: int) -> list[PrefillChunk]:
        """Equal shares; what a short prompt leaves goes to longer ones. The first in turn always moves on."""
        chunks: list[PrefillChunk] = []
        turn = [one for request_id in self._turn if not (one := self.running[request_id]).paused]
        shortest_first = sorted(turn, key=lambda request: request.remaining_tokens)
        for place, request in enumerate(shortest_first):
            count = request.chunk_tokens(budget // (len(turn) - place))
            if count == 0 and request is turn[0]:
                count = request.shortest_chunk()
            if count:
                chunks.append(PrefillChunk(request.request_id, request.prefilled_tokens, count))
                budget = max(0, budget - count)
        self._turn.rotate(-1)
        return chunks
