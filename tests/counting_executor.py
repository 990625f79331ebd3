"""A small deterministic executor, and a coordinator that drives it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from moorage.runtime.planning.trained_length import Reach
from moorage.runtime.serving.capacity import Capacity, Resources
from moorage.runtime.serving.coordinator import Cluster, Coordinator
from moorage.runtime.serving.health import ClusterHealth
from moorage.runtime.serving.protocol import Event, GenerateParams, ModelInfo, Token
from moorage.runtime.serving.scheduled_request import Limits
from moorage.runtime.serving.status_records import KvActorStatus
from moorage.workers.errors import StoreFull, Unavailable
from moorage.workers.spec import (
    ContinueSession,
    KvLayout,
    OpenSession,
    Positions,
    SampledToken,
    SegmentResult,
    StepPlan,
    StepResult,
)
from tests.engine_driver import FULL, memory

LAYOUT = KvLayout(num_layers=1, num_kv_heads=1, head_dim=16, block_size=4)
EOS = 9
PRESETS = {
    None: FULL,
    "clamped": memory(scheme=Positions.CLAMPED),
    "verified": memory(topk=1, verify=3),
}


class CountingExecutor:
    """Holds each session's tokens; the next token is the sum of all of them modulo 9, so never EOS by itself.

    It refuses what the engine would refuse, and more blocks than there are pages.
    """

    worker_pids = (1,)
    attention_dtype = "float32"

    def __init__(self, pages: int) -> None:
        self.health = ClusterHealth()
        self.pages = pages
        self.elapsed_s = 0.001
        self.sessions: dict[int, list[int]] = {}
        self.tables: dict[int, list[object]] = {}
        """The pages of each session; forked sessions have pages in common."""
        self.idle: set[int] = set()
        self.raises: list[BaseException] = []
        """What the next steps with segments raise, after half of their work unless it is a drop that fails."""
        self.drops_fail = False
        self.plans: list[StepPlan] = []
        self.fail_session: int | None = None
        self.openings: dict[int, OpenSession | ContinueSession] = {}
        self.drafted: dict[int, int] = {}
        """By session: tokens that were drafted since the last known one."""
        self.gone = False
        self.recalls: list[tuple[float, ...]] = []
        """By head, of the next steps that generate tokens; none is sampled after them."""

    @property
    def blocks(self) -> dict[int, int]:
        """How many pages each session has."""
        return {session_id: len(table) for session_id, table in self.tables.items()}

    def _cut(self, session_id: int, num_tokens: int) -> None:
        """Frees the pages that hold none of the first tokens."""
        del self.sessions[session_id][num_tokens:], self.tables[session_id][LAYOUT.num_blocks(num_tokens) :]

    def _grow(self, session_id: int, num_tokens: int) -> None:
        """Allocates pages of the session's own: for the end of what it holds, if shared, and up to `num_tokens`."""
        table = self.tables.setdefault(session_id, [])
        others = [page for other, pages in self.tables.items() if other != session_id for page in pages]
        if len(self.sessions[session_id]) % LAYOUT.block_size and table[-1] in others:
            table[-1] = object()
        table += [object() for _ in range(LAYOUT.num_blocks(num_tokens) - len(table))]
        assert len({page for pages in self.tables.values() for page in pages}) <= self.pages

    async def execute(self, plan: StepPlan) -> StepResult:
        """Checks the plan against what is held, as the engine does."""
        await asyncio.sleep(0)
        if self.gone:
            raise Unavailable("worker is gone")
        self.plans.append(plan)
        if plan.drops and self.drops_fail:
            raise self.raises.pop(0)
        for fork in plan.forks:
            if fork.session_id not in self.sessions or fork.new_id in self.sessions:
                continue
            held = self.sessions[fork.session_id][: fork.num_blocks * LAYOUT.block_size]
            assert len(held) == fork.num_blocks * LAYOUT.block_size
            self.sessions[fork.new_id] = held
            self.tables[fork.new_id] = self.tables[fork.session_id][: fork.num_blocks]
            self.idle.add(fork.new_id)
        for session_id in plan.drops:
            self.drop(session_id)
        for session_id in plan.idles:
            if session_id in self.sessions:
                self.idle.add(session_id)
                self._cut(session_id, len(self.sessions[session_id]))
        for opening in plan.opens:
            if isinstance(opening, ContinueSession):
                self._cut(opening.session_id, opening.keep_tokens)
        for opening in plan.opens:
            self.openings[opening.session_id] = opening
            if isinstance(opening, ContinueSession):
                assert opening.session_id in self.idle
                self.idle.remove(opening.session_id)
            else:
                assert isinstance(opening, OpenSession)
                assert opening.session_id not in self.sessions
                self.sessions[opening.session_id] = []
            self._grow(opening.session_id, opening.max_tokens)
        if plan.segments and self.raises and not self.drops_fail:
            for session_id in {one.session_id for one in (*plan.opens, *plan.segments)}:
                self.drop(session_id)
            raise self.raises.pop(0)
        results = []
        for segment in plan.segments:
            held = self.sessions[segment.session_id]
            assert segment.start == len(held)
            held += segment.token_ids
            if segment.session_id == self.fail_session:
                results.append(
                    SegmentResult(
                        segment.session_id, error=StoreFull(f"session {self.fail_session}: its store is full")
                    )
                )
                continue
            first = 1 if segment.start == 0 else 0
            scored = tuple(-float(t) for t in segment.token_ids[first:]) if segment.prompt_logprobs else ()
            if len(held) > self.openings[segment.session_id].prompt_tokens:
                results.append(self._decoded(segment.session_id, held))
                continue
            token_id = sum(held) % 9 if segment.sample else None
            results.append(SegmentResult(segment.session_id, token_id, -1.0, prompt_logprobs=scored))
        return StepResult(plan.step_id, tuple(results), self.elapsed_s)

    def _decoded(self, session_id: int, held: list[int]) -> SegmentResult:
        """The next token, or one step of a round that drafts some and then finds some of them right."""
        opening = self.openings[session_id]
        verify, done = opening.memory.verify, self.drafted.pop(session_id, 0)
        if done < verify:
            self.drafted[session_id] = done + 1
            held.pop()
            return SegmentResult(session_id, num_selected_blocks=3.0)
        tokens = [sum(held) % 9]
        while len(tokens) <= sum(held) % (verify + 1) and len(held) + 1 < opening.max_tokens:
            held.append(tokens[-1])
            tokens.append(sum(held) % 9)
        following = tuple(SampledToken(token, -1.0) for token in tokens[1:])
        shares = self.recalls.pop(0) if self.recalls else ()
        return SegmentResult(
            session_id,
            tokens[0],
            -1.0,
            following=following,
            num_drafted=verify,
            recall=sum(shares) / len(shares) if shares else None,
            recall_by_head=shares,
        )

    async def kv_actors(self) -> tuple[KvActorStatus, ...]:
        """It has none."""
        return ()

    async def close(self) -> None:
        """There is nothing to end."""

    def drop(self, session_id: int) -> None:
        """Forgets a session, if there is one."""
        self.sessions.pop(session_id, None)
        self.tables.pop(session_id, None)
        self.drafted.pop(session_id, None)
        self.idle.discard(session_id)


def cluster(
    worker: CountingExecutor,
    eos: frozenset[int],
    pages: int = 64,
    max_seq_len: int = 200,
    resources: Resources | None = None,
    max_wait_s: float | None = None,
) -> Cluster:
    resources = resources or Resources((pages,), 10_000)

    return Cluster(
        model=ModelInfo("toy", "llama", "float32", 10, max_seq_len, "full"),
        eos_token_ids=eos,
        tokenizer=None,
        limits=Limits(
            resources, 16, decode_prefill_tokens=4, max_running=4, max_waiting=8, max_wait_s=max_wait_s
        ),
        capacity=Capacity(LAYOUT, resources, 1, None),
        executor=worker,
        resolve_memory=lambda preset, _: PRESETS[preset],
        reach=lambda _memory: Reach(42, "plain RoPE"),
    )


@asynccontextmanager
async def running(
    eos: int = EOS, replaced: dict[str, Any] | None = None, **changes: Any
) -> AsyncIterator[tuple[Coordinator, CountingExecutor]]:
    worker = CountingExecutor(changes.get("pages", 64))
    coordinator = Coordinator(replace(cluster(worker, frozenset({eos}), **changes), **(replaced or {})))
    try:
        yield coordinator, worker
    finally:
        await coordinator.close()


async def collect(coordinator: Coordinator, **params: object) -> list[Event]:
    return [event async for event in coordinator.generate(GenerateParams(**params))]  # type: ignore[arg-type]


def token_ids(events: list[Event]) -> list[int]:
    return [event.token_id for event in events if isinstance(event, Token)]


def expected(prompt: list[int], count: int) -> list[int]:
    held = list(prompt)
    for _ in range(count):
        held.append(sum(held) % 9)
    return held[len(prompt) :]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)
