"""The loop that drives the GPU worker: settle, schedule, step, deliver.

When a step raises, its sessions are failed and dropped everywhere, and the others go on; when the scheduler itself
raises, it starts anew, without sessions. Either is in the log with its traceback. After some failures in a row the
worker is asked for a token of its own: a server whose every request is odd goes on, and one that can't answer that
either counts as failed, as it does when the worker is gone. The server then ends.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterable

import structlog

from moorage.runtime.serving.capacity import Ledger
from moorage.runtime.serving.event_stream import EventStream
from moorage.runtime.serving.health import ClusterHealth
from moorage.runtime.serving.jobs import Limits, Step
from moorage.runtime.serving.output_processor import Delivery, Totals
from moorage.runtime.serving.request import Request
from moorage.runtime.serving.request_log import log_end
from moorage.runtime.serving.reuse import StoredKv, reusable_tokens
from moorage.runtime.serving.scheduler import Scheduler
from moorage.runtime.serving.session_cache import Conversation
from moorage.runtime.serving.step_failures import StepFailures
from moorage.runtime.serving.step_plans import openings, segments
from moorage.runtime.serving.throughput import Throughput, retry_after_s, waits_s
from moorage.runtime.serving.worker_client import WorkerHandle
from moorage.workers.errors import MoorageError, Unavailable
from moorage.workers.spec import MemorySpec, OpenSession, SamplingSpec, Segment, StepPlan, StepResult

log = structlog.get_logger()

PROBE_SESSION = 0
"""The worker's session by which the loop sees whether it still answers; requests count from 1."""


class StepLoop:
    """Admitted requests, and the task that runs their steps. It owns the scheduler and what the worker holds."""

    def __init__(
        self,
        limits: Limits,
        ledger: Ledger,
        worker: WorkerHandle,
        eos_token_ids: frozenset[int],
        health: ClusterHealth,
        memory: MemorySpec,
    ) -> None:
        """`memory` is that of a request which names no preset."""
        self._memory = memory
        self._limits, self._ledger, self._worker, self._health = limits, ledger, worker, health
        self.scheduler = Scheduler(limits, self._reusable)
        self.requests: dict[int, Request] = {}
        self.totals = Totals()
        self.failures = StepFailures()
        self._leaving: list[Request] = []
        """Requests whose client is done or gone; settled between two steps."""
        self._drops: list[int] = []
        """Worker sessions to drop with the next step that succeeds."""
        self._idles: list[int] = []
        """Worker sessions that keep their KV alone, from the next step that succeeds on."""
        self._step_ids = itertools.count(1)
        self._wake = asyncio.Event()
        self._throughput = Throughput()
        self._delivery = Delivery(eos_token_ids, self.totals, time.monotonic)
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(self._ended)

    def add(self, request: Request) -> EventStream:
        """Queues a request. Raises, changing nothing, what can't be served now."""
        self._health.check()
        starts = self.expected_waits()
        self.scheduler.add(request.job, retry_after_s(starts) if starts else None)
        self.requests[request.request_id] = request
        self._wake.set()

        def leave() -> None:
            self._leaving.append(request)
            self._wake.set()

        def go_on() -> None:
            if request.job.paused:
                request.job.paused = False
                self._wake.set()

        return EventStream(request.events, leave, go_on)

    def fail_requests(self, error: MoorageError) -> None:
        """Ends all requests with an error. Conversations keep their KV, and the loop goes on."""
        for request in self.requests.values():
            request.end(error)

    def expected_waits(self) -> list[float] | None:
        """When each waiting request will start, from now on; None until the throughput was measured."""
        works: dict[int, float] = {}
        for request in self.requests.values():
            work_s = self._throughput.work_s(*request.remaining_tokens)
            if work_s is None:
                return None
            works[request.request_id] = work_s
        running = [works.get(job_id, 0.0) for job_id in self.scheduler.running]
        return waits_s(running, [works[job.job_id] for job in self.scheduler.waiting])

    async def close(self) -> None:
        """Ends the task. Safe to call twice."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def _reusable(self, request_id: int, held: Conversation) -> int:
        """How many tokens of a request's prompt need no prefill when it goes on with `held`."""
        request = self.requests[request_id]
        return reusable_tokens(held.stored, request.prompt, request.memory, self._ledger.layout)

    async def _run(self) -> None:
        """The loop: settle, schedule, step, deliver."""
        while True:
            try:
                idle = not await self._turn()
            except Unavailable as error:
                self._fail("the worker is lost", error)
                return
            except Exception as error:  # noqa: BLE001  the loop must not end without a word
                self._start_anew(error)
                idle = False
            if self.failures.many_in_a_row and (hopeless := await self._probe()) is not None:
                self._fail("the step loop", hopeless)
                return
            if idle:
                self._wake.clear()
                await self._wake.wait()

    async def _turn(self) -> bool:
        """One step with all that belongs to it; False when there is nothing to do."""
        self._settle()
        step = self.scheduler.next_step()
        self._drops += [held.session_id for held in step.evicted]
        if step.is_empty and not self._drops and not self._idles:
            return False
        try:
            result = await self._run_step(step)
            self.scheduler.prefilled(step.prefills)
            self._leaving += self._delivery(step, result, self.requests)
        except Unavailable:
            raise
        except Exception as error:  # noqa: BLE001  whatever it was, the others go on
            self._fail_step(step, error)
            return True
        if not step.is_empty:
            self.failures.succeeded()
        return True

    async def _run_step(self, step: Step) -> StepResult:
        now_s = time.monotonic()
        drops, idles = tuple(self._drops), tuple(self._idles)
        plan = StepPlan(
            next(self._step_ids),
            drops,
            openings(step, self.requests, now_s),
            segments(step, self.requests),
            idles,
        )
        result = await self._worker.step(plan)
        del self._drops[: len(drops)], self._idles[: len(idles)]
        prompt_tokens = sum(chunk.count for chunk in step.prefills)
        self._throughput.note_step(prompt_tokens, len(step.decodes), result.elapsed_s)
        return result

    async def _probe(self) -> Unavailable | None:
        """Asks the worker for one token, and for what was left to do; why the cluster has failed if that raises."""
        opening = OpenSession(PROBE_SESSION, 2, 1, self._memory, SamplingSpec())
        segment = Segment(PROBE_SESSION, 0, (0,), sample=True)
        drops, idles = tuple(self._drops), tuple(self._idles)
        plan = StepPlan(next(self._step_ids), (*drops, PROBE_SESSION), (opening,), (segment,), idles)
        self._drops.append(PROBE_SESSION)
        try:
            await self._worker.step(plan)
            del self._drops[: len(drops)], self._idles[: len(idles)]
        except Unavailable as error:
            return error
        except Exception as error:  # noqa: BLE001  it is reported
            return self.failures.hopeless(error)
        self.failures.succeeded()
        return None

    def _settle(self) -> None:
        """Between two steps: forgets requests that ended."""
        leaving, self._leaving = self._leaving, []
        for request in leaving:
            self._forget(request)

    def _forget(self, request: Request) -> None:
        """Frees a request's room and drops its KV, or leaves the KV to its conversation."""
        if self.requests.pop(request.request_id, None) is None:
            return
        log_end(request, time.monotonic())
        if request.finished and not request.is_score:
            self._throughput.note_end(len(request.generated), request.max_new_tokens)
        job, tokens = request.job, request.stored_tokens(request.job.prefilled_tokens)
        if job.room is None:  # it waited
            self.scheduler.release(job.job_id)
        elif request.conversation is None or request.failed or not tokens:
            self.scheduler.release(job.job_id)
            self._drops.append(request.session_id)
        else:
            room = self._ledger.idle(len(tokens)).starting_at(job.first_actor)
            stored = StoredKv(tokens, len(request.prompt), request.memory)
            held = Conversation(request.conversation, request.session_id, stored, room, job.first_actor)
            self.scheduler.keep(job.job_id, held)
            self._idles.append(request.session_id)

    def _fail_step(self, step: Step, error: Exception) -> None:
        """A step raised: its requests end, and the worker drops their sessions with the next step."""
        told = self.failures.note(error, "step")
        self._fail_all([self.requests[job_id] for job_id in step.job_ids if job_id in self.requests], told)

    def _start_anew(self, error: Exception) -> None:
        """What is scheduled can't be trusted: all requests end, and no session is left."""
        told = self.failures.note(error, "scheduling")
        held = [conversation.session_id for conversation in self.scheduler.idle]
        started = [request for request in self.requests.values() if request.admitted_s is not None]
        self._drops = [*dict.fromkeys((*self._drops, *held, *(request.session_id for request in started)))]
        self._idles = []
        self._fail_all(self.requests.values(), told)
        for request in self.requests.values():
            log_end(request, time.monotonic())
        self.requests.clear()
        self.scheduler = Scheduler(self._limits, self._reusable)

    def _fail_all(self, requests: Iterable[Request], error: Exception) -> None:
        for request in requests:
            request.fail(error)
            self._leaving.append(request)

    def _fail(self, source: str, error: Unavailable) -> None:
        """The cluster can't go on."""
        self._health.report(source, str(error), fatal=True)
        self.fail_requests(error)
        log.error("the cluster has failed", reason=str(error))

    def _ended(self, task: asyncio.Task[None]) -> None:
        """The loop is over: nobody answers requests any more."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._fail("the coordinator", Unavailable(f"the coordinator ended ({type(error).__name__})"))
