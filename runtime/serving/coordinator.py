"""Checks requests, queues them for the step loop, and reports the state of the cluster. It touches no tensor."""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from moorage.runtime.planning.trained_length import Reach
from moorage.runtime.serving.capacity import Capacity
from moorage.runtime.serving.event_stream import EventStream
from moorage.runtime.serving.executor import Executor
from moorage.runtime.serving.health import ClusterHealth
from moorage.runtime.serving.protocol import ClusterStatus, GenerateParams, ModelInfo, ScoreParams
from moorage.runtime.serving.queue_status import running_requests, waiting_requests
from moorage.runtime.serving.request import Request
from moorage.runtime.serving.request_totals import RequestTotals
from moorage.runtime.serving.scheduled_request import Limits, ScheduledRequest
from moorage.runtime.serving.sessions.keys import session_key, unnamed_key
from moorage.runtime.serving.sessions.manager import Sessions
from moorage.runtime.serving.sessions.records import SessionPolicy
from moorage.runtime.serving.sessions.saving import Saved
from moorage.runtime.serving.step_loop import StepLoop
from moorage.runtime.serving.tenant_limits import NO_LIMITS, TenantLimits
from moorage.runtime.serving.tenant_use import TenantUse
from moorage.runtime.text.decoder import decoder_of
from moorage.runtime.text.grammar import Grammars
from moorage.runtime.text.jobs import Text
from moorage.runtime.text.stop_strings import StopMatcher
from moorage.runtime.text.tokenizer import TextTokenizer
from moorage.workers.counting import counted
from moorage.workers.errors import InvalidRequest, MoorageError, Unavailable
from moorage.workers.spec import MemorySpec
from moorage.workers.token_ids import TokenIds


@dataclass(frozen=True, slots=True)
class Cluster:
    """What the coordinator works with: facts of the model, capacity, and the executor."""

    model: ModelInfo
    eos_token_ids: frozenset[int]
    tokenizer: TextTokenizer | None
    """The tokenizer for generated tokens, one at a time."""
    limits: Limits
    capacity: Capacity
    executor: Executor
    resolve_memory: Callable[[str | None, Mapping[str, str]], MemorySpec]
    """Settings of a request by its preset, where None is the cluster's, and its own settings.

    Raises InvalidRequest for what there is not, and for what does not fit.
    """
    text: Text | None = None
    """The tokenizer in a process of its own, for what clients send."""
    grammars: Grammars | None = None
    """Compiles what answers must follow."""
    reach: Callable[[MemorySpec], Reach] = lambda _memory: Reach(None, "")
    """How far the positions of a request hold."""
    sessions: SessionPolicy = SessionPolicy()
    saved: Saved | None = None
    """Where sessions are saved; None where they are not."""
    preset_differs: Callable[[str | None], tuple[str, ...]] = lambda _preset: ()
    """What a request's preset says of the store, and the cluster has otherwise."""


class Coordinator:
    """Serves requests. Everything happens on one event loop."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._loop = StepLoop(
            cluster.limits,
            cluster.capacity,
            cluster.executor,
            cluster.eos_token_ids,
            cluster.resolve_memory(None, {}),
        )
        self._tenant_use = TenantUse(self._loop.requests)
        self._session_ids = itertools.count(1)
        self.sessions = Sessions(
            self._loop, cluster.capacity, cluster.sessions, self._session_ids.__next__, cluster.saved
        )
        self._started_s = time.monotonic()

    @property
    def text(self) -> Text:
        """The model's tokenizer and chat template. Raises InvalidRequest when the model directory has none."""
        if self._cluster.text is None:
            raise InvalidRequest("the model has no tokenizer.json; send token ids instead of text")
        return self._cluster.text

    @property
    def grammars(self) -> Grammars:
        """Compiles grammars. Raises InvalidRequest when the model directory has no tokenizer."""
        if self._cluster.grammars is None:
            raise InvalidRequest("grammar: needs tokenizer.json, which the model has not; leave it out")
        return self._cluster.grammars

    @property
    def health(self) -> ClusterHealth:
        """What keeps the cluster from serving."""
        return self._cluster.executor.health

    def model_info(self) -> ModelInfo:
        """The served model."""
        return self._cluster.model

    @property
    def request_totals(self) -> RequestTotals:
        """Figures of all requests that ended."""
        return self._loop.request_totals

    def check_load(self, tenant: str = "", limits: TenantLimits = NO_LIMITS) -> None:
        """Raises what keeps every request of a tenant from being queued now, whatever it asks."""
        self.health.check()
        self._tenant_use.check_any(tenant, limits)
        self._loop.load.check(tenant, self._loop.scheduler)

    def generate(self, params: GenerateParams) -> EventStream:
        """Queues a generation, or raises why it can't be served. Closing the stream ends it at the next step."""
        request = self._request(params)
        self._tenant_use.check(request, params.limits)
        return self._loop.add(request)

    def score(self, params: ScoreParams) -> EventStream:
        """Queues as `generate` does: log-probabilities of a text, in order, then Finished."""
        return self.generate(
            GenerateParams(
                params.tokens,
                max_new_tokens=0,
                preset=params.preset,
                memory=params.memory,
                request_id=params.request_id,
                tenant=params.tenant,
                limits=params.limits,
            )
        )

    async def status(self) -> ClusterStatus:
        """A snapshot of the cluster."""
        kv_actors = await self._cluster.executor.kv_actors()
        loop, now_s = self._loop, time.monotonic()
        scheduler, totals, problem = loop.scheduler, loop.totals, self.health.problem
        return ClusterStatus(
            model=self._cluster.model,
            state="serving" if problem is None else "failed" if problem.fatal else "not serving",
            uptime_s=now_s - self._started_s,
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            prefilling=sum(not running.decoding for running in scheduler.running.values()),
            kv_actors=kv_actors,
            worker_pids=self._cluster.executor.worker_pids,
            prompt_tokens_total=totals.prompt_tokens,
            generated_tokens_total=totals.generated_tokens,
            cache_hit_rate=totals.cache_hit_rate,
            recall=totals.recall,
            step_part_s=dict(totals.part_s),
            failure="" if problem is None else problem.message,
            waiting_requests=waiting_requests(
                scheduler, loop.requests, self._cluster.capacity, loop.load.expected_waits(scheduler), now_s
            ),
            running_requests=running_requests(scheduler, loop.requests),
            idle_sessions=len(scheduler.idle),
            failed_steps_total=loop.failures.total,
            attention_dtype=self._cluster.executor.attention_dtype,
            link_bytes_total=totals.link_bytes,
        )

    def fail_requests(self, error: MoorageError) -> None:
        """Ends all requests with an error. Named sessions keep their KV, and the cluster itself may go on."""
        self._loop.fail_requests(error)

    async def close(self) -> None:
        """Ends all requests, and stops the workers. Safe to call twice."""
        await self.sessions.close()
        await self._loop.close()
        self.fail_requests(Unavailable("the server is stopping"))
        if self._cluster.text is not None:
            await self._cluster.text.close()
        await self._cluster.executor.close()

    def _request(self, params: GenerateParams) -> Request:
        """The record of a request; without new tokens it scores its prompt. Raises what can't be served."""
        cluster, prompt, limit = self._cluster, params.prompt, self._cluster.model.max_seq_len
        memory = cluster.resolve_memory(params.preset, params.memory).replace(inspect=params.inspect)
        if not len(prompt):
            raise InvalidRequest("prompt is empty; send at least one token")
        if len(prompt) + min(params.max_new_tokens, 1) > limit:
            raise InvalidRequest(
                f"prompt has {counted(len(prompt), 'token')} and long_context.max_seq_len is {limit}; "
                "shorten the prompt or raise max_seq_len"
            )
        if params.guide is not None and memory.verify:
            raise InvalidRequest(
                "grammar: can't be combined with memory.verify; send verify: 0 or no grammar"
            )
        max_new_tokens = min(params.max_new_tokens, limit - len(prompt))
        need = cluster.capacity.need(len(prompt) + max_new_tokens, memory)
        cluster.capacity.check(need, len(prompt) + max_new_tokens)
        request_id = params.request_id or secrets.token_hex(6)
        alignment = max(1, memory.selection.execution_block)
        scores = params.prompt_logprobs or not max_new_tokens
        session_id, tokens = next(self._session_ids), TokenIds(prompt)
        unnamed = scores or params.session is None
        session = None if unnamed else session_key(params.tenant, params.session or "")
        chain = None if scores else self.sessions.chain_of(params.tenant, memory, tokens)
        if chain is not None and session is None:
            session = unnamed_key(params.tenant, session_id)
        digests = () if chain is None else chain.digests
        return Request(
            request_id=request_id,
            session_id=session_id,
            prompt=tokens,
            memory=memory,
            sampling=params.sampling,
            max_new_tokens=max_new_tokens,
            block_size=cluster.capacity.layout.block_size,
            arrived_s=time.monotonic(),
            decoder=decoder_of(cluster.tokenizer, prompt, params.shown_special),
            scheduled=ScheduledRequest(
                request_id, len(prompt), need, alignment, session, params.tenant, digests
            ),
            chain=chain,
            matcher=StopMatcher(params.stop),
            guide=params.guide,
            ignore_eos=params.ignore_eos,
            scores_prompt=scores,
            dram_bytes=cluster.capacity.bytes_of(need),
            reach=cluster.reach(memory),
            preset_differs=cluster.preset_differs(params.preset),
        )
