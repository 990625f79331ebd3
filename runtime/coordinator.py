"""Sessions, admission, and the loop that drives the GPU worker. It never touches a tensor."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import structlog

from moorage.runtime.conversations import Conversation, Conversations
from moorage.runtime.delivery import Delivery, Totals
from moorage.runtime.health import ClusterHealth
from moorage.runtime.ledger import Ledger
from moorage.runtime.request import Request
from moorage.runtime.requests import (
    ClusterStatus,
    Event,
    Finished,
    GenerateParams,
    KvActorStatus,
    ModelInfo,
    ScoreParams,
)
from moorage.runtime.reuse import StoredKv, reusable_tokens
from moorage.runtime.scheduler import Job, Limits, Scheduler, Step
from moorage.runtime.stopping import StopMatcher
from moorage.runtime.text.jobs import Text
from moorage.runtime.tokenizer import IncrementalDecoder, TextTokenizer
from moorage.runtime.trained_length import Reach
from moorage.runtime.worker_handle import WorkerHandle
from moorage.workers.counting import counted
from moorage.workers.errors import InvalidRequest, MoorageError, Unavailable
from moorage.workers.spec import (
    ContinueSession,
    MemorySpec,
    OpenSession,
    SamplingSpec,
    Segment,
    StepPlan,
)

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Cluster:
    """What the coordinator works with: the model's facts, the room, and ways to the processes."""

    model: ModelInfo
    eos_token_ids: frozenset[int]
    tokenizer: TextTokenizer | None
    """For generated tokens, one at a time."""
    limits: Limits
    ledger: Ledger
    worker: WorkerHandle
    resolve_memory: Callable[[str | None], MemorySpec]
    """A request's preset (None is the cluster's own) to axes; raises InvalidRequest for an unknown one."""
    kv_status: Callable[[], Awaitable[tuple[KvActorStatus, ...]]]
    shutdown: Callable[[], Awaitable[None]]
    """Stops every process that was started for the cluster."""
    health: ClusterHealth = field(default_factory=ClusterHealth)
    text: Text | None = None
    """The tokenizer in a process of its own, for what clients send."""
    reach: Callable[[MemorySpec], Reach] = lambda _memory: Reach(None, "")
    """How far the positions of a request hold."""


class Coordinator:
    """Takes requests, packs steps, hands results on. Everything happens on one event loop."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._scheduler = Scheduler(cluster.limits)
        self._conversations = Conversations()
        self._requests: dict[int, Request] = {}
        self._leaving: list[Request] = []
        """Requests whose client is done or gone; settled between two steps."""
        self._drops: list[int] = []
        """Worker sessions to drop with the next step."""
        self._request_ids = itertools.count(1)
        self._step_ids = itertools.count(1)
        self._wake = asyncio.Event()
        self._started_s = time.monotonic()
        self._totals = Totals()
        self._delivery = Delivery(cluster.eos_token_ids, self._totals, time.monotonic)
        self._task = asyncio.create_task(self._run())

    @property
    def text(self) -> Text:
        """The model's tokenizer and chat template. Raises InvalidRequest when the model directory has none."""
        if self._cluster.text is None:
            raise InvalidRequest("the model has no tokenizer.json; send token ids instead of text")
        return self._cluster.text

    @property
    def health(self) -> ClusterHealth:
        """What keeps the cluster from serving."""
        return self._cluster.health

    def model_info(self) -> ModelInfo:
        """The served model."""
        return self._cluster.model

    def generate(self, params: GenerateParams) -> AsyncGenerator[Event]:
        """Events of one generation; closing the iterator stops its work at the next step boundary."""
        request = self._request(params.prompt, params.preset, params.sampling, params.max_new_tokens)
        request.ignore_eos = params.ignore_eos
        request.matcher = StopMatcher(params.stop)
        request.conversation = params.session
        return self._follow(request)

    def score(self, params: ScoreParams) -> AsyncGenerator[Event]:
        """Log-probabilities of a text, in order, then Finished."""
        request = self._request(params.tokens, params.preset, SamplingSpec(), 0)
        return self._follow(request)

    async def status(self) -> ClusterStatus:
        """A snapshot of the cluster."""
        running = self._scheduler.running.values()
        totals = self._totals
        problem = self.health.problem
        return ClusterStatus(
            model=self._cluster.model,
            state="serving" if problem is None else "failed" if problem.fatal else "not serving",
            uptime_s=time.monotonic() - self._started_s,
            running=len(running),
            waiting=len(self._scheduler.waiting),
            prefilling=sum(not job.decoding for job in running),
            kv_actors=await self._cluster.kv_status(),
            worker_pids=(self._cluster.worker.pid,),
            prompt_tokens_total=totals.prompt_tokens,
            generated_tokens_total=totals.generated_tokens,
            cache_hit_rate=totals.cache_hit_rate,
            recall=totals.recall,
            step_part_s=dict(totals.part_s),
            failure="" if problem is None else problem.message,
        )

    def fail_requests(self, error: MoorageError) -> None:
        """Ends all requests with an error. Conversations keep their KV, and the cluster itself may go on."""
        for request in self._requests.values():
            request.events.put_nowait(error)

    async def close(self) -> None:
        """Ends all requests, and stops the workers. Safe to call twice."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self.fail_requests(Unavailable("the server is stopping"))
        if self._cluster.text is not None:
            await self._cluster.text.close()
        await self._cluster.shutdown()

    def _request(
        self, prompt: Sequence[int], preset: str | None, sampling: SamplingSpec, max_new_tokens: int
    ) -> Request:
        limit = self._cluster.model.max_seq_len
        if not len(prompt):
            raise InvalidRequest("prompt is empty; send at least one token")
        if len(prompt) + min(max_new_tokens, 1) > limit:
            raise InvalidRequest(
                f"prompt has {counted(len(prompt), 'token')} and long_context.max_seq_len is {limit}; "
                "shorten the prompt or raise max_seq_len"
            )
        tokenizer, memory = self._cluster.tokenizer, self._cluster.resolve_memory(preset)
        return Request(
            request_id=next(self._request_ids),
            prompt=tuple(prompt),
            memory=memory,
            sampling=sampling,
            max_new_tokens=min(max_new_tokens, limit - len(prompt)),
            block_size=self._cluster.ledger.layout.block_size,
            arrived_s=time.monotonic(),
            decoder=IncrementalDecoder(tokenizer) if tokenizer else None,
            reach=self._cluster.reach(memory),
        )

    async def _follow(self, request: Request) -> AsyncGenerator[Event]:
        self._admit(request)
        try:
            while True:
                event = await request.events.get()
                if isinstance(event, Exception):
                    raise event
                yield event
                if isinstance(event, Finished):
                    return
        finally:
            self._leaving.append(request)
            self._wake.set()

    def _admit(self, request: Request) -> None:
        """Queues a request. Raises, changing nothing, what can't be served."""
        self.health.check()
        need = self._cluster.ledger.need(request.num_tokens, request.memory)
        self._cluster.ledger.check(need, request.num_tokens)
        request.dram_bytes = self._cluster.ledger.bytes_of(need)
        job = Job(request.request_id, len(request.prompt), need, max(1, request.memory.exc_block_size))
        held = self._conversations.claim(request.conversation) if request.conversation else None
        if held is not None:
            job.need = need.beyond(held.room)
            layout = self._cluster.ledger.layout
            request.cached_tokens = reusable_tokens(held.stored, request.prompt, request.memory, layout)
            job.prefilled_tokens = request.cached_tokens
        try:
            self._scheduler.add(job)
        except MoorageError:
            if held is not None:
                held.busy = False
            raise
        request.held = held
        request.session_id = held.session_id if held else request.request_id
        self._requests[request.request_id] = request
        self._wake.set()

    async def _run(self) -> None:
        """The loop: settle, schedule, step, deliver."""
        while True:
            self._settle()
            step = self._scheduler.next_step()
            if step.is_empty and not self._drops:
                self._wake.clear()
                await self._wake.wait()
                continue
            plan = self._plan(step)
            try:
                result = await self._cluster.worker.step(plan)
            except Unavailable as error:
                self.health.report("step", str(error), fatal=True)
                self.fail_requests(error)
                log.error("the cluster has failed", reason=str(error))
                return
            self._scheduler.prefilled(step.prefills)
            self._leaving += self._delivery(step, result, self._requests)

    def _settle(self) -> None:
        """Between two steps: forgets requests that ended, and makes room where one waits for it."""
        for request in self._leaving:
            self._forget(request)
        self._leaving.clear()
        while self._scheduler.blocked() is not None:
            idle = self._conversations.idlest()
            if idle is None:
                break
            self._conversations.forget(idle.name)
            self._scheduler.give(idle.room)
            self._drops.append(idle.session_id)

    def _forget(self, request: Request) -> None:
        """Drops a request's KV, or leaves it to its conversation."""
        if self._requests.pop(request.request_id, None) is None:
            return
        job = self._scheduler.running.get(request.request_id)
        room = self._scheduler.release(request.request_id)
        held = request.held
        if room is None or job is None:
            if held is not None:
                held.busy = False
            return
        room = room.plus(held.room) if held else room
        if request.conversation is None or request.failed:
            self._scheduler.give(room)
            self._drops.append(request.session_id)
            if held is not None:
                self._conversations.forget(held.name)
            return
        tokens = request.stored_tokens(job.prefilled_tokens)
        stored = StoredKv(tokens, len(request.prompt), request.memory)
        now_s = time.monotonic()
        self._conversations.keep(Conversation(request.conversation, request.session_id, stored, room, now_s))

    def _plan(self, step: Step) -> StepPlan:
        """The scheduler's decision in the worker's terms."""
        now_s = time.monotonic()
        opens = []
        for job_id in step.admitted:
            request = self._requests[job_id]
            request.admitted_s = now_s
            opens.append(_opening(request))
        segments = []
        for job_id in step.decodes:
            request = self._requests[job_id]
            start = len(request.prompt) + len(request.generated) - 1
            segments.append(Segment(request.session_id, start, (request.generated[-1],), sample=True))
        for chunk in step.prefills:
            request = self._requests[chunk.job_id]
            end = chunk.start + chunk.count
            segments.append(
                Segment(
                    request.session_id,
                    chunk.start,
                    request.prompt[chunk.start : end],
                    sample=end == len(request.prompt) and not request.is_score,
                    prompt_logprobs=request.is_score,
                )
            )
        drops, self._drops = tuple(self._drops), []
        return StepPlan(next(self._step_ids), drops, tuple(opens), tuple(segments))


def _opening(request: Request) -> OpenSession | ContinueSession:
    if request.held is not None:
        return ContinueSession(
            request.session_id,
            request.cached_tokens,
            request.num_tokens,
            len(request.prompt),
            request.memory,
            request.sampling,
            request.prompt[: request.cached_tokens] if request.sampling.counts_tokens else (),
        )
    return OpenSession(
        request.session_id, request.num_tokens, len(request.prompt), request.memory, request.sampling
    )
