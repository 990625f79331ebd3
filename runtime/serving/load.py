"""What is queued, and what is refused instead since it would wait too long by the measured speed."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass

from moorage.runtime.serving.fair_order import in_turn
from moorage.runtime.serving.queue_status import (
    LEAST_RETRY_S,
    MOST_RETRY_S,
    Throughput,
    expected_waits,
    retry_after_s,
    waits_s,
    works_s,
)
from moorage.runtime.serving.request import Request
from moorage.runtime.serving.scheduled_request import ScheduledRequest
from moorage.runtime.serving.scheduler import Scheduler
from moorage.workers.counting import counted
from moorage.workers.errors import ResourceExhausted


@dataclass(frozen=True, slots=True)
class Load:
    """What runs and waits, and how fast it is served."""

    throughput: Throughput
    requests: MutableMapping[str, Request]
    max_wait_s: float | None

    def expected_waits(self, scheduler: Scheduler) -> list[float] | None:
        """When each waiting request will start, from now on; None until the throughput was measured."""
        return expected_waits(self.throughput, scheduler, self.requests)

    def add(self, request: Request, scheduler: Scheduler) -> None:
        """Queues a request. Raises ResourceExhausted, changing nothing, if it may not wait, or not for so long."""
        with self._telling_when(scheduler):
            scheduler.add(request.scheduled)
        self.requests[request.request_id] = request
        try:
            self._check_wait(request.scheduled, scheduler)
        except ResourceExhausted:
            del self.requests[request.request_id]
            scheduler.release(request.request_id)
            raise

    def check(self, tenant: str, scheduler: Scheduler) -> None:
        """Raises ResourceExhausted where `add` would raise it for every request of a tenant, whatever it asks.

        Where fewer requests run than may, or where no throughput was measured, that is not known.
        """
        with self._telling_when(scheduler):
            scheduler.check_queue(tenant)
        works = None if self.max_wait_s is None else works_s(self.throughput, self.requests)
        if works is None or len(scheduler.running) < scheduler.limits.max_running:
            return
        asked = ScheduledRequest("", 0, scheduler.free, tenant=tenant)
        order = in_turn([*scheduler.waiting, asked], scheduler.running.values())
        before = [works[waiting.request_id] for waiting in order[: order.index(asked)]]
        running = [works.get(request_id, 0.0) for request_id in scheduler.running]
        self._check(waits_s(running, [*before, 0.0])[-1], "it would wait")

    def _check_wait(self, request: ScheduledRequest, scheduler: Scheduler) -> None:
        """Refuses a request that would wait too long, in the queue or for prompts that are prefilled beside it."""
        starts = None if self.max_wait_s is None else self.expected_waits(scheduler)
        if starts is None:
            return
        beside = _tokens_beside(request, scheduler)
        if beside is None:
            self._check(starts[scheduler.waiting.index(request)], "it would wait")
        else:
            delay_s = self.throughput.work_s(beside, 0) or 0.0
            self._check(delay_s, "prompts that are read beside it would delay it by")

    def _check(self, wait_s: float, what: str) -> None:
        if self.max_wait_s is not None and wait_s > self.max_wait_s:
            raise ResourceExhausted(
                f"{what} {wait_s:.3g} s, longer than server.max_wait allows ({self.max_wait_s:g} s); try again later",
                retry_after_s=min(max(wait_s - self.max_wait_s, LEAST_RETRY_S), MOST_RETRY_S),
            )

    @contextmanager
    def _telling_when(self, scheduler: Scheduler) -> Iterator[None]:
        """Adds to a refusal when to come again, which takes a look at every waiting request."""
        try:
            yield
        except ResourceExhausted as refused:
            starts = self.expected_waits(scheduler)
            refused.retry_after_s = retry_after_s(starts) if starts else None
            raise


def held_by_pinned(num_pinned: int) -> ResourceExhausted:
    """The error of a request for which pinned sessions leave no memory."""
    return ResourceExhausted(
        f"the memory that the request needs is held by {counted(num_pinned, 'pinned session')}; unpin or delete "
        "some, or raise kv_store.dram"
    )


def _tokens_beside(request: ScheduledRequest, scheduler: Scheduler) -> int | None:
    """Prompt tokens of others that are read beside those of a waiting request, which get equal shares.

    None where the next step does not admit it, as far as that is known: something holds up one before it.
    """
    free = scheduler.limits.max_running - len(scheduler.running)
    unread = [running.remaining_tokens for running in scheduler.running.values()]
    for wait in scheduler.waits():
        own = wait.request.prompt_tokens - wait.cached_tokens
        if wait.request is request:
            starts = wait.waits_for == "queue" and wait.place < free
            return sum(min(own, other) for other in unread) if starts else None
        if wait.waits_for == "queue":
            unread.append(own)
        elif wait.waits_for != "session":
            return None
    return None
