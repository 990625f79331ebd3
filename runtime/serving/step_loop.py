"""The loop that drives the workers: settle, schedule, execute, process the output.

When a step raises, its requests fail, their sessions are dropped everywhere, and the others go on. When the scheduler
itself raises, a new one takes its place, without sessions. Both are logged. After some failures in a row the worker
must generate a token in a session of the loop's own; when that raises, or the worker is gone, the cluster fails.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterable, Sequence

import structlog

from moorage.runtime.serving.capacity import Capacity
from moorage.runtime.serving.event_stream import EventStream
from moorage.runtime.serving.executor import Executor
from moorage.runtime.serving.health import StepFailures
from moorage.runtime.serving.load import Load, held_by_pinned
from moorage.runtime.serving.output_processor import OutputProcessor
from moorage.runtime.serving.pending import Pending
from moorage.runtime.serving.queue_status import Throughput
from moorage.runtime.serving.request import Request
from moorage.runtime.serving.request_log import log_end
from moorage.runtime.serving.request_totals import RequestTotals
from moorage.runtime.serving.scheduled_request import Limits, Step
from moorage.runtime.serving.scheduler import Scheduler
from moorage.runtime.serving.session_cache import IdleSession
from moorage.runtime.serving.sessions.prefixes import Prefixes
from moorage.runtime.serving.sessions.reuse import reusable_tokens
from moorage.runtime.serving.totals import Totals
from moorage.workers.errors import InvalidRequest, MoorageError, Unavailable
from moorage.workers.spec import (
    ContinueSession,
    ForkSession,
    MemorySpec,
    OpenSession,
    RestoreSession,
    SamplingSpec,
    Segment,
    StepResult,
)

log = structlog.get_logger()

PROBE_SESSION = 0
"""The session in which the loop checks that the worker still answers; those of requests count from 1."""


class StepLoop:
    """Accepted requests, and the task that runs their steps. It owns the scheduler and the worker's sessions."""

    def __init__(
        self,
        limits: Limits,
        capacity: Capacity,
        executor: Executor,
        eos_token_ids: frozenset[int],
        memory: MemorySpec,
    ) -> None:
        """`memory` is that of a request which names no preset."""
        self._memory = memory
        self._limits, self._capacity, self._executor = limits, capacity, executor
        self._prefixes = Prefixes(capacity, self._reusable)
        self.scheduler = Scheduler(limits, self._saved_tokens, self._prefixes)
        self.requests: dict[str, Request] = {}
        self.totals = Totals()
        self.failures = StepFailures()
        self.request_totals = RequestTotals()
        self._ended_requests: list[Request] = []
        """Requests that ended, or whose client closed the stream; settled between two steps."""
        self.on_session: Callable[[str], None] = lambda _name: None
        """Called with the name of a session when a request of it has ended."""
        self._pending = Pending()
        self._step_ids = itertools.count(1)
        self._wake = asyncio.Event()
        self._throughput = Throughput()
        self.load = Load(self._throughput, self.requests, limits.max_wait_s)
        self._output = OutputProcessor(eos_token_ids, self.totals, time.monotonic)
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(self._ended)

    def add(self, request: Request) -> EventStream:
        """Queues a request. Raises, changing nothing, what can't be served now."""
        self._executor.health.check()
        if request.request_id in self.requests:
            raise InvalidRequest(f"request_id: {request.request_id!r} is in use; choose another or send none")
        self.load.add(request, self.scheduler)
        self._wake.set()

        def on_close() -> None:
            self._ended_requests.append(request)
            self._wake.set()

        def on_read() -> None:
            if request.scheduled.paused:
                request.scheduled.paused = False
                self._wake.set()

        return EventStream(request.events, on_close, on_read)

    def fork(self, session: IdleSession, new: IdleSession) -> None:
        """Adds an idle session that shares blocks with another; the worker opens it with the next step."""
        self.scheduler.hold(new)
        whole_and_rest = divmod(len(new.stored.token_ids), self._capacity.layout.block_size)
        self._pending.forks.append(ForkSession(session.session_id, new.session_id, *whole_and_rest))
        self._wake.set()

    def restore(self, session: IdleSession, restoring: RestoreSession) -> None:
        """Adds an idle session, for which there must be memory; the worker opens it with the next step."""
        self.scheduler.hold(session)
        self._pending.restores.append(restoring)
        self._wake.set()

    def is_due(self, session_id: int) -> bool:
        """Whether a fork or a restored session is not yet open; False once the loop is over."""
        return self._pending.opens(session_id) and not self._task.done()

    def discard(self, session: IdleSession) -> None:
        """Frees an idle session; the worker drops it with the next step."""
        self.scheduler.discard(session)
        self._pending.drops.append(session.session_id)
        self._wake.set()

    @property
    def unsettled(self) -> Sequence[Request]:
        """Requests that have ended and hold their session until the present step ends; none once the loop is over."""
        return () if self._task.done() else self._ended_requests

    def fail_requests(self, error: MoorageError) -> None:
        """Ends all requests with an error. Named sessions keep their KV, and the loop goes on."""
        for request in self.requests.values():
            request.end(error)

    async def close(self) -> None:
        """Ends the task. Safe to call twice."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def _saved_tokens(self, request_id: str, held: IdleSession) -> int:
        """How many tokens of a request's prompt need no prefill when it goes on with `held`, or with its answer."""
        goes_on = self.requests[request_id].goes_on_with(held)
        return len(held.stored.token_ids) if goes_on else self._reusable(request_id, held)

    def _reusable(self, request_id: str, held: IdleSession) -> int:
        """How many tokens of a request's prompt need no prefill after those that it shares with `held`."""
        request = self.requests[request_id]
        return reusable_tokens(
            held.stored,
            request.prompt,
            request.memory,
            self._capacity.layout,
            windows=self._capacity.windows,
        )

    async def _run(self) -> None:
        """The loop: settle, schedule, execute, process the output."""
        while True:
            try:
                idle = not await self._next_step()
            except Unavailable as error:
                self._fail("the worker is lost", error)
                return
            except Exception as error:  # noqa: BLE001  the loop must not end unnoticed
                self._restart(error)
                idle = False
            if self.failures.many_in_a_row and (hopeless := await self._probe()) is not None:
                self._fail("the step loop", hopeless)
                return
            if idle:
                self._wake.clear()
                await self._wake.wait()

    async def _next_step(self) -> bool:
        """One step with all that belongs to it; False when there is nothing to do."""
        self._settle()
        step = self.scheduler.next_step()
        self._pending.drops += [held.session_id for held in step.evicted]
        if (blocked := self.scheduler.blocked) is not None:
            self._refuse_blocked(self.requests[blocked])
        if step.is_empty and not self._pending:
            return bool(self._ended_requests)
        try:
            result = await self._run_step(step)
            self.scheduler.prefilled(step.prefills)
            self._ended_requests += self._output.process(step, result, self.requests)
        except Unavailable:
            raise
        except Exception as error:  # noqa: BLE001  whatever it was, the others go on
            self._fail_step(step, error)
            return True
        if not step.is_empty:
            self.failures.succeeded()
        return True

    def _refuse_blocked(self, request: Request) -> None:
        request.end(held_by_pinned(len(self.scheduler.idle.pinned)))
        self._ended_requests.append(request)

    async def _run_step(self, step: Step) -> StepResult:
        now_s = time.monotonic()
        opens = tuple(self.requests[request_id].open_session(now_s) for request_id in step.admitted)
        for request in (self.requests[request_id] for request_id in step.admitted):
            if (source := request.scheduled.source) is not None:
                blocks = request.cached_tokens // request.block_size
                self._pending.forks.append(ForkSession(source.session_id, request.session_id, blocks))
        segments = [self.requests[request_id].decode_segment() for request_id in step.decodes]
        segments += [self.requests[chunk.request_id].prefill_segment(chunk) for chunk in step.prefills]
        result = await self._execute(opens, tuple(segments))
        self._throughput.record_step(step.prompt_tokens, len(step.decodes), result.elapsed_s)
        return result

    async def _execute(
        self, opens: tuple[OpenSession | ContinueSession, ...], segments: tuple[Segment, ...]
    ) -> StepResult:
        """Runs a plan, with the forks, drops and idles that are due. They stay due when it raises."""
        plan = self._pending.plan(next(self._step_ids), opens, segments)
        result = await self._executor.execute(plan)
        self._pending.done(plan)
        return result

    async def _probe(self) -> Unavailable | None:
        """Generates a token without any request, and repeats failed drops. Returns why the cluster failed."""
        opening = OpenSession(PROBE_SESSION, 2, 1, self._memory, SamplingSpec())
        segment = Segment(PROBE_SESSION, 0, (0,), sample=True)
        try:
            await self._execute((opening,), (segment,))
        except Unavailable as error:
            return error
        except Exception as error:  # noqa: BLE001  it is reported
            return self.failures.hopeless(error)
        self._pending.drops.append(PROBE_SESSION)
        self.failures.succeeded()
        return None

    def _settle(self) -> None:
        """Removes requests that ended, between two steps."""
        while self._ended_requests:
            self._remove(self._ended_requests.pop(0))

    def _remove(self, request: Request) -> None:
        """Frees a request's reservation and drops its KV, or keeps the KV as an idle session."""
        if self.requests.pop(request.request_id, None) is None:
            return
        self._record_end(request)
        if request.finished and not request.is_score:
            self._throughput.record_end(len(request.generated), request.max_new_tokens)
        session = request.idle_session(self._capacity, time.time())
        if session is not None:
            self.scheduler.keep(request.request_id, session)
            self._pending.idles.append(request.session_id)
        else:
            self.scheduler.release(request.request_id)
            if request.admitted_s is not None:
                self._pending.drops.append(request.session_id)
        if request.scheduled.session_name is not None:
            self.on_session(request.scheduled.session_name)

    def _fail_step(self, step: Step, error: Exception) -> None:
        """A step raised: its requests fail, and the worker drops their sessions with the next step."""
        concerned = [self.requests[one] for one in step.request_ids if one in self.requests]
        self._fail_all(concerned, self.failures.record(error, "step", _ids(concerned)))

    def _restart(self, error: Exception) -> None:
        """The scheduler's state can't be trusted: all requests end, and no session is left."""
        reported = self.failures.record(error, "scheduling", _ids(self.requests.values()))
        held = [session.session_id for session in self.scheduler.idle]
        started = [request for request in self.requests.values() if request.admitted_s is not None]
        self._pending.drop_all((*held, *(request.session_id for request in started)))
        self._fail_all(self.requests.values(), reported)
        for request in self.requests.values():
            self._record_end(request)
        self.requests.clear()
        self.scheduler = Scheduler(self._limits, self._saved_tokens, self._prefixes)

    def _record_end(self, request: Request) -> None:
        now_s = time.monotonic()
        log_end(request, now_s)
        self.request_totals.record(request, now_s)

    def _fail_all(self, requests: Iterable[Request], error: MoorageError) -> None:
        for request in requests:
            request.fail_step(error)
            self._ended_requests.append(request)

    def _fail(self, source: str, error: Unavailable) -> None:
        """The cluster can't go on."""
        self._executor.health.report(source, str(error), fatal=True)
        self.fail_requests(error)
        log.error("the cluster has failed", reason=str(error))

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Reports that the loop is over."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._fail("the coordinator", Unavailable(f"the coordinator ended ({type(error).__name__})"))


def _ids(requests: Iterable[Request]) -> dict[str, int]:
    """The worker's session of each request."""
    return {request.request_id: request.session_id for request in requests}
