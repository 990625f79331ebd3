"""The coordinator's loop over a small deterministic worker: order, stops, cancellation, conversations."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from moorage.runtime.coordinator import Cluster, Coordinator
from moorage.runtime.jobs import Limits
from moorage.runtime.ledger import Ledger
from moorage.runtime.requests import (
    Event,
    Finished,
    GenerateParams,
    ModelInfo,
    Progress,
    PromptLogprobs,
    ScoreParams,
    Token,
)
from moorage.runtime.room import Room
from moorage.runtime.trained_length import Reach
from moorage.workers.errors import InvalidRequest, ResourceExhausted, StoreFull, Unavailable
from moorage.workers.spec import (
    ContinueSession,
    KvLayout,
    OpenSession,
    Positions,
    SamplingSpec,
    SegmentResult,
    StepPlan,
    StepResult,
)
from tests.engine_driver import FULL, memory

LAYOUT = KvLayout(num_layers=1, num_kv_heads=1, head_dim=16, block_size=4)
EOS = 9


class CountingWorker:
    """Holds each session's tokens; the next token is the sum of all of them modulo 9, so never EOS by itself."""

    pid = 1

    def __init__(self) -> None:
        self.sessions: dict[int, list[int]] = {}
        self.plans: list[StepPlan] = []
        self.fail_session: int | None = None
        self.gone = False

    async def step(self, plan: StepPlan) -> StepResult:
        """Checks the plan against what is held, as the engine does."""
        await asyncio.sleep(0)
        if self.gone:
            raise Unavailable("worker is gone")
        self.plans.append(plan)
        for session_id in plan.drops:
            self.sessions.pop(session_id, None)
        for opening in plan.opens:
            if isinstance(opening, ContinueSession):
                del self.sessions[opening.session_id][opening.keep_tokens :]
            else:
                assert isinstance(opening, OpenSession)
                assert opening.session_id not in self.sessions
                self.sessions[opening.session_id] = []
        results = []
        for segment in plan.segments:
            held = self.sessions[segment.session_id]
            assert segment.start == len(held)
            held += segment.token_ids
            if segment.session_id == self.fail_session:
                results.append(SegmentResult(segment.session_id, error=StoreFull("its store is full")))
                continue
            first = 1 if segment.start == 0 else 0
            scored = tuple(-float(t) for t in segment.token_ids[first:]) if segment.prompt_logprobs else ()
            token_id = sum(held) % 9 if segment.sample else None
            results.append(SegmentResult(segment.session_id, token_id, -1.0, prompt_logprobs=scored))
        return StepResult(plan.step_id, tuple(results), 0.001)


def cluster(worker: CountingWorker, eos: frozenset[int], pages: int = 64, max_seq_len: int = 200) -> Cluster:
    room = Room((pages,), 10_000)

    async def nothing() -> None: ...

    async def no_actors() -> tuple[()]:
        return ()

    return Cluster(
        model=ModelInfo("toy", "llama", "float32", 10, max_seq_len, "full"),
        eos_token_ids=eos,
        tokenizer=None,
        limits=Limits(room, max_step_tokens=16, decode_prefill_tokens=4, max_running=4, max_waiting=8),
        ledger=Ledger(LAYOUT, room, 1, None),
        worker=worker,
        resolve_memory=lambda preset: FULL if preset is None else memory(positions=Positions.CLAMPED),
        kv_status=no_actors,
        shutdown=nothing,
        reach=lambda _memory: Reach(42, "plain RoPE"),
    )


@asynccontextmanager
async def running(eos: int = EOS, **changes: int) -> AsyncIterator[tuple[Coordinator, CountingWorker]]:
    worker = CountingWorker()
    coordinator = Coordinator(cluster(worker, frozenset({eos}), **changes))
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


async def test_a_request_reports_progress_then_tokens_then_a_record() -> None:
    prompt = [n % 9 for n in range(40)]
    async with running() as (coordinator, worker):
        events = await collect(coordinator, prompt=prompt, max_new_tokens=5)
    assert [e.prefilled_tokens for e in events if isinstance(e, Progress)] == [16, 32, 40]
    assert token_ids(events) == expected(prompt, 5)
    last = events[-1]
    assert isinstance(last, Finished)
    assert (last.finish_reason, last.usage.prompt_tokens, last.usage.completion_tokens) == ("length", 40, 5)
    assert last.usage.beyond_tokens == 3, "40 and 5 tokens, of which positions reach 42"
    assert last.usage.dram_bytes == LAYOUT.num_blocks(45) * LAYOUT.page_bytes
    assert sum(len(plan.segments) for plan in worker.plans) == 3 + 4


async def test_an_eos_token_ends_a_request_unless_it_is_ignored() -> None:
    prompt = [1, 1]
    async with running(eos=2) as (coordinator, _):
        stopped = await collect(coordinator, prompt=prompt, max_new_tokens=5)
        ignored = await collect(coordinator, prompt=prompt, max_new_tokens=5, ignore_eos=True)
    assert token_ids(stopped) == [2]
    assert isinstance(stopped[-1], Finished)
    assert stopped[-1].finish_reason == "stop"
    assert token_ids(ignored) == expected(prompt, 5)


async def test_requests_together_get_what_each_gets_alone() -> None:
    prompts = [[n % 9 for n in range(length)] for length in (1, 7, 50, 90)]
    async with running() as (coordinator, _):
        results = await asyncio.gather(*(collect(coordinator, prompt=p, max_new_tokens=6) for p in prompts))
    assert [token_ids(events) for events in results] == [expected(p, 6) for p in prompts]


async def test_scores_come_in_order_from_the_second_token_on() -> None:
    tokens = [n % 9 for n in range(40)]
    async with running() as (coordinator, _):
        events = [event async for event in coordinator.score(ScoreParams(tokens))]
    parts = [event for event in events if isinstance(event, PromptLogprobs)]
    assert [part.start for part in parts] == [1, 16, 32]
    assert [lp for part in parts for lp in part.logprobs] == [-float(t) for t in tokens[1:]]
    assert isinstance(events[-1], Finished)


async def test_a_client_that_leaves_stops_its_work_within_a_step_and_frees_its_room() -> None:
    async with running() as (coordinator, worker):
        events = coordinator.generate(GenerateParams([1, 2, 3], max_new_tokens=150))
        async for event in events:
            if isinstance(event, Token):
                break
        steps = len(worker.plans)
        await events.aclose()  # type: ignore[attr-defined]
        await until(lambda: not worker.sessions)
        assert len(worker.plans) <= steps + 2
        assert (await coordinator.status()).running == 0
        assert len(token_ids(await collect(coordinator, prompt=[1], max_new_tokens=199))) == 199


async def test_a_failure_of_one_session_leaves_the_others_running() -> None:
    async with running() as (coordinator, worker):
        good = asyncio.create_task(collect(coordinator, prompt=[1, 2], max_new_tokens=30))
        await until(lambda: len(worker.plans) > 2)
        worker.fail_session = 2
        with pytest.raises(ResourceExhausted, match="its store is full"):
            await collect(coordinator, prompt=[3], max_new_tokens=3)
        assert token_ids(await good) == expected([1, 2], 30)
        await until(lambda: not worker.sessions)


async def test_a_conversation_pays_only_for_its_new_tokens() -> None:
    first = [n % 9 for n in range(20)]
    async with running() as (coordinator, _):
        events = await collect(coordinator, prompt=first, max_new_tokens=4, session="talk")
        second = first + token_ids(events) + [5, 6]
        again = await collect(coordinator, prompt=second, max_new_tokens=4, session="talk")
        changed = await collect(coordinator, prompt=[8, *second], max_new_tokens=4, session="talk")
    assert isinstance(again[-1], Finished)
    assert again[-1].usage.cached_tokens == 23
    assert token_ids(again) == expected(second, 4)
    assert isinstance(changed[-1], Finished)
    assert changed[-1].usage.cached_tokens == 0
    assert token_ids(changed) == expected([8, *second], 4)


async def test_a_turn_under_other_positions_is_prefilled_anew_and_says_so() -> None:
    prompt = [n % 9 for n in range(20)]
    async with running() as (coordinator, worker):
        await collect(coordinator, prompt=prompt, max_new_tokens=4, session="talk")
        other = await collect(coordinator, prompt=prompt, max_new_tokens=4, session="talk", preset="clamped")
        again = await collect(coordinator, prompt=prompt, max_new_tokens=4, session="talk", preset="clamped")
    cached = [events[-1].usage.cached_tokens for events in (other, again) if isinstance(events[-1], Finished)]
    assert cached == [0, 19]
    assert token_ids(other) == token_ids(again) == expected(prompt, 4)
    assert len(worker.sessions) == 1


async def test_penalties_of_a_turn_hear_of_the_tokens_that_are_kept() -> None:
    prompt = [n % 9 for n in range(20)]
    async with running() as (coordinator, worker):
        for sampling in (SamplingSpec(), SamplingSpec(), SamplingSpec(repetition_penalty=1.3)):
            await collect(coordinator, prompt=prompt, max_new_tokens=4, session="talk", sampling=sampling)
    opens = [opening for plan in worker.plans for opening in plan.opens]
    assert [o.kept_ids for o in opens if isinstance(o, ContinueSession)] == [(), tuple(prompt[:19])]


async def test_a_busy_conversation_is_refused_and_an_idle_one_makes_room() -> None:
    async with running(pages=20) as (coordinator, worker):
        await collect(coordinator, prompt=[1] * 30, max_new_tokens=10, session="idle")
        assert len(worker.sessions) == 1
        talk = asyncio.create_task(collect(coordinator, prompt=[2] * 40, max_new_tokens=20, session="busy"))
        await until(lambda: 2 in worker.sessions)
        assert 1 not in worker.sessions
        again = asyncio.create_task(collect(coordinator, prompt=[2] * 40, max_new_tokens=20, session="busy"))
        with suppress(InvalidRequest):
            await again
        assert len(token_ids(await talk)) == 20


@pytest.mark.parametrize(
    ("prompt", "max_new_tokens", "error", "says"),
    [
        ([], 4, InvalidRequest, "prompt is empty"),
        ([1] * 201, 4, InvalidRequest, "prompt has 201 tokens and long_context.max_seq_len is 200"),
        ([1] * 100, 60, ResourceExhausted, "enough for 80 tokens"),
    ],
)
async def test_what_can_never_run_is_refused_at_once(
    prompt: list[int], max_new_tokens: int, error: type[Exception], says: str
) -> None:
    async with running(pages=20) as (coordinator, _):
        with pytest.raises(error, match=says):
            await collect(coordinator, prompt=prompt, max_new_tokens=max_new_tokens)
        assert token_ids(await collect(coordinator, prompt=[1], max_new_tokens=2)) == [1, 2]


async def test_when_the_worker_is_gone_all_requests_end_as_unavailable() -> None:
    async with running() as (coordinator, worker):
        request = asyncio.create_task(collect(coordinator, prompt=[1], max_new_tokens=150))
        await until(lambda: len(worker.plans) > 3)
        worker.gone = True
        with pytest.raises(Unavailable, match="worker is gone"):
            await request
        with pytest.raises(Unavailable):
            await collect(coordinator, prompt=[1], max_new_tokens=1)
        assert (await coordinator.status()).state == "failed"
