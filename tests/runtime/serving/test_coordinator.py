"""The coordinator's loop over a small deterministic executor: order, stops, cancellation, sessions."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import structlog
from tokenizers import Tokenizer, decoders, models

from moorage.runtime.serving.event_stream import MOST_UNREAD
from moorage.runtime.serving.protocol import (
    Finished,
    GenerateParams,
    Progress,
    PromptLogprobs,
    ScoreParams,
    Token,
)
from moorage.runtime.text.tokenizer import TextTokenizer
from moorage.workers.errors import InvalidRequest, ResourceExhausted, Unavailable
from moorage.workers.spec import (
    ContinueSession,
    SamplingSpec,
)
from tests.counting_executor import LAYOUT, collect, expected, running, token_ids, until


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


async def test_the_record_has_mean_and_low_percentile_of_recall_over_steps_and_heads() -> None:
    async with running() as (coordinator, worker):
        worker.recalls = [(1.0, 0.5), (0.0, 1.0), (1.0, 0.7)]
        measured = await collect(coordinator, prompt=[1, 2, 3], max_new_tokens=5)
        other = await collect(coordinator, prompt=[1, 2, 3], max_new_tokens=5)
    assert isinstance(measured[-1], Finished)
    assert isinstance(other[-1], Finished)
    assert measured[-1].usage.recall == pytest.approx(0.7)
    # A quarter of the way from 0.0, the smallest of six shares, to 0.5.
    assert measured[-1].usage.recall_p5 == pytest.approx(0.125)
    assert (other[-1].usage.recall, other[-1].usage.recall_p5) == (None, None)


async def test_an_eos_token_ends_a_request_unless_it_is_ignored() -> None:
    prompt = [1, 1]
    async with running(eos=2) as (coordinator, _):
        stopped = await collect(coordinator, prompt=prompt, max_new_tokens=5)
        ignored = await collect(coordinator, prompt=prompt, max_new_tokens=5, ignore_eos=True)
    assert token_ids(stopped) == [2]
    assert isinstance(stopped[-1], Finished)
    assert stopped[-1].finish_reason == "stop"
    assert token_ids(ignored) == expected(prompt, 5)


async def test_the_text_continues_the_prompts(tmp_path: Path) -> None:
    words = {
        word: token_id for token_id, word in enumerate(["▁a", "▁b", "▁c", "d", "e", "▁f", ",", "▁", "▁g"])
    }
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=","))
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    text = TextTokenizer.load(tmp_path)
    async with running(replaced={"tokenizer": text}) as (coordinator, _):
        for prompt in ([1], [4, 2], [5, 7], [0, 3, 8]):
            events = await collect(coordinator, prompt=prompt, max_new_tokens=6)
            said = "".join(event.text for event in events if isinstance(event, Token))
            assert text.decode(prompt) + said == text.decode([*prompt, *token_ids(events)])


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


async def test_a_client_that_leaves_stops_its_work_within_a_step_and_frees_its_reservation() -> None:
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


async def test_a_session_pays_only_for_its_new_tokens() -> None:
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


async def test_penalties_of_a_turn_count_the_tokens_that_are_kept() -> None:
    prompt = [n % 9 for n in range(20)]
    async with running() as (coordinator, worker):
        for sampling in (SamplingSpec(), SamplingSpec(), SamplingSpec(repetition_penalty=1.3)):
            await collect(coordinator, prompt=prompt, max_new_tokens=4, session="talk", sampling=sampling)
    opens = [opening for plan in worker.plans for opening in plan.opens]
    assert [o.kept_ids for o in opens if isinstance(o, ContinueSession)] == [(), tuple(prompt[:19])]


async def test_idle_sessions_are_evicted_for_others() -> None:
    async with running(pages=20) as (coordinator, worker):
        await collect(coordinator, prompt=[1] * 30, max_new_tokens=10, session="idle")
        await until(lambda: worker.idle == {1})
        assert worker.blocks == {1: LAYOUT.num_blocks(39)}
        await collect(coordinator, prompt=[2] * 40, max_new_tokens=20, session="other")
        await until(lambda: worker.idle == {2})
        again = await collect(coordinator, prompt=[1] * 31, max_new_tokens=9, session="idle")
    assert isinstance(again[-1], Finished)
    assert again[-1].usage.cached_tokens == 0
    assert token_ids(again) == expected([1] * 31, 9)


@pytest.mark.parametrize("begun", [False, True], ids=["new", "idle"])
async def test_requests_of_one_session_come_one_after_the_other(begun: bool) -> None:
    prompt = [1, 2, 3, 4]
    async with running() as (coordinator, worker):
        if begun:
            await collect(coordinator, prompt=prompt[:2], max_new_tokens=1, session="talk")
        both = await asyncio.gather(
            *(collect(coordinator, prompt=prompt, max_new_tokens=30, session="talk") for _ in range(2))
        )
        await until(lambda: len(worker.idle) == 1)
        status = await coordinator.status()
        assert list(worker.sessions) == list(worker.idle)
        assert (status.running, status.waiting, status.idle_sessions) == (0, 0, 1)
    assert [token_ids(events) for events in both] == [expected(prompt, 30)] * 2
    cached = [events[-1].usage.cached_tokens for events in both if isinstance(events[-1], Finished)]
    assert cached == [2 if begun else 0, 3]


async def test_a_session_can_be_continued_as_soon_as_its_request_was_cancelled() -> None:
    async with running() as (coordinator, _):
        events = coordinator.generate(GenerateParams([1, 2, 3], max_new_tokens=150, session="talk"))
        async for event in events:
            if isinstance(event, Token):
                break
        await events.aclose()
        again = await collect(coordinator, prompt=[1, 2, 3], max_new_tokens=4, session="talk")
    assert token_ids(again) == expected([1, 2, 3], 4)


async def test_two_sessions_that_grow_beside_a_third_are_all_answered() -> None:
    """Each holds 35 % of DRAM and asks for as much again while a third request runs; none waits for the other."""
    async with running(pages=100, max_seq_len=400) as (coordinator, _):
        texts = {name: [number] * 139 for number, name in enumerate("ab")}
        for name, prompt in texts.items():
            await collect(coordinator, prompt=prompt, max_new_tokens=1, session=name)
        third = asyncio.create_task(collect(coordinator, prompt=[5], max_new_tokens=100))
        await asyncio.sleep(0)
        longer = {name: [*prompt, *[3] * 120] for name, prompt in texts.items()}
        turns = (
            collect(coordinator, prompt=prompt, max_new_tokens=20, session=name)
            for name, prompt in longer.items()
        )
        async with asyncio.timeout(10):
            answers = await asyncio.gather(*turns, third)
    assert [token_ids(events) for events in answers] == [
        *(expected(prompt, 20) for prompt in longer.values()),
        expected([5], 100),
    ]
    cached = [events[-1].usage.cached_tokens for events in answers if isinstance(events[-1], Finished)]
    assert cached == [139, 0, 0]


async def test_more_sessions_stay_than_may_run_at_once() -> None:
    async with running(pages=64) as (coordinator, worker):
        for number in range(30):
            await collect(coordinator, prompt=[number % 9, 1, 2], max_new_tokens=2, session=f"talk {number}")
        await until(lambda: len(worker.idle) == 30)
        assert (await coordinator.status()).idle_sessions == 30
        kept = await collect(coordinator, prompt=[0, 1, 2, 3], max_new_tokens=2, session="talk 0")
    assert isinstance(kept[-1], Finished)
    assert kept[-1].usage.cached_tokens == 3


async def test_a_full_queue_refuses_at_the_call_and_says_when_to_come_again() -> None:
    """The longer the work that waits, the later; what was measured decides, not a constant."""
    delays = []
    for new_tokens in (30, 180):
        async with running() as (coordinator, worker):
            worker.elapsed_s = 0.1
            await collect(coordinator, prompt=[1] * 9, max_new_tokens=40)
            waiting = [
                coordinator.generate(GenerateParams([1] * 9, max_new_tokens=new_tokens)) for _ in range(8)
            ]
            with pytest.raises(ResourceExhausted, match="queue is full") as refused:
                coordinator.generate(GenerateParams([1]))
            delays.append(refused.value.retry_after_s)
            for events in waiting:
                await events.aclose()
    assert delays[1] > 3 * delays[0] > 3


async def test_a_request_that_would_wait_too_long_is_refused_at_once() -> None:
    async with running(max_wait_s=30.0) as (coordinator, worker):
        worker.elapsed_s = 0.1
        await collect(coordinator, prompt=[1] * 9, max_new_tokens=40)
        asked = GenerateParams([1] * 9, max_new_tokens=200, tenant="a")
        held = [coordinator.generate(asked)]

        def fill() -> None:
            while len(held) < 8:
                held.append(coordinator.generate(asked))

        with pytest.raises(
            ResourceExhausted, match=r"longer than server.max_wait allows \(30 s\)"
        ) as refused:
            fill()
        assert len(held) > 1
        assert refused.value.retry_after_s is not None
        assert (await coordinator.status()).waiting == len(held) - (await coordinator.status()).running
        # Another tenant's request comes before those that wait, so it does not wait as long.
        other = coordinator.generate(GenerateParams([1] * 9, max_new_tokens=200, tenant="b"))
        for events in (*held, other):
            await events.aclose()


async def test_a_request_that_starts_with_the_next_step_does_not_wait() -> None:
    """Whatever runs beside it: only what the machine has no room for is refused."""
    async with running(max_wait_s=1.0) as (coordinator, worker):
        worker.elapsed_s = 0.1
        await collect(coordinator, prompt=[1] * 9, max_new_tokens=40)
        long = GenerateParams([1] * 9, max_new_tokens=200)
        held = [coordinator.generate(long)]
        await until(lambda: worker.plans[-1].segments != ())
        held += [coordinator.generate(long) for _ in range(3)]
        with pytest.raises(ResourceExhausted, match="it would wait"):  # Four may run.
            coordinator.generate(long)
        for events in held:
            await events.aclose()


async def test_status_says_what_each_waiting_request_waits_for() -> None:
    async with running(pages=20) as (coordinator, _):
        first = coordinator.generate(
            GenerateParams([1] * 40, max_new_tokens=20, session="talk", request_id="a")
        )
        await anext(first)
        others = [
            coordinator.generate(GenerateParams([1], max_new_tokens=9, session="talk", request_id="b")),
            coordinator.generate(GenerateParams([1] * 50, max_new_tokens=9, request_id="c")),
            coordinator.generate(GenerateParams([1], max_new_tokens=1, request_id="d")),
        ]
        waits = (await coordinator.status()).waiting_requests
        for events in (first, *others):
            await events.aclose()
    assert [(wait.request_id, wait.prompt_tokens, wait.waits_for) for wait in waits] == [
        ("b", 1, "session"),
        ("c", 50, "memory"),
        ("d", 1, "queue"),
    ]
    assert [wait.reason for wait in waits] == [
        "another request of its session runs",
        "it needs 4.69 KiB of KV memory; 1.56 KiB are free, idle sessions hold 0 B, and the rest belongs to "
        "1 running request",
        "2 requests before it",
    ]


async def test_a_request_and_its_session_are_linked_in_the_log_and_in_the_status() -> None:
    with structlog.testing.capture_logs() as logs:
        async with running() as (coordinator, worker):
            await collect(coordinator, prompt=[1] * 20, max_new_tokens=4, session="talk", request_id="first")
            events = coordinator.generate(
                GenerateParams([1] * 30, max_new_tokens=90, session="talk", request_id="second")
            )
            async for event in events:
                if isinstance(event, Token):
                    break
            (listed,) = (await coordinator.status()).running_requests
            await events.aclose()
    assert (listed.request_id, listed.session_id) == ("second", 1), "it goes on with the first one's session"
    assert (listed.prompt_tokens, listed.prefilled_tokens) == (30, 30)
    assert listed.generated_tokens >= 1
    admitted = [entry for entry in logs if entry["event"] == "request admitted"]
    assert [(line["request_id"], line["session_id"]) for line in admitted] == [("first", 1), ("second", 1)]
    assert [line["cached_tokens"] for line in admitted] == [0, 20]
    assert {one.session_id for plan in worker.plans for one in plan.opens} == {1}


async def test_an_error_of_the_worker_names_the_request_as_its_client_knows_it() -> None:
    async with running() as (coordinator, worker):
        worker.fail_session = 1
        with pytest.raises(ResourceExhausted, match=r"^request 1f6c: its store is full$"):
            await collect(coordinator, prompt=[3], max_new_tokens=3, request_id="1f6c")


async def test_two_requests_at_once_can_not_have_one_id() -> None:
    async with running() as (coordinator, _):
        events = coordinator.generate(GenerateParams([1], max_new_tokens=90, request_id="a"))
        with pytest.raises(InvalidRequest, match=r"request_id: 'a' is in use"):
            coordinator.generate(GenerateParams([2], max_new_tokens=1, request_id="a"))
        await events.aclose()


async def test_each_request_leaves_one_line_in_the_log_without_its_prompt() -> None:
    with structlog.testing.capture_logs() as logs:
        async with running(eos=2) as (coordinator, worker):
            await collect(coordinator, prompt=[1, 1], max_new_tokens=5, request_id="a")
            _ = [event async for event in coordinator.score(ScoreParams([1, 2, 3], request_id="b"))]
            gone = coordinator.generate(GenerateParams([7, 8], max_new_tokens=150, request_id="c"))
            await anext(gone)
            await gone.aclose()
            worker.fail_session = 4
            with pytest.raises(ResourceExhausted):
                await collect(coordinator, prompt=[3], max_new_tokens=3, request_id="d")
            await until(lambda: not worker.sessions)
    lines = {entry["request_id"]: entry for entry in logs if entry["event"] == "request finished"}
    assert {name: (line["method"], line["outcome"]) for name, line in lines.items()} == {
        "a": ("generate", "stop"),
        "b": ("score", "length"),
        "c": ("generate", "cancelled"),
        "d": ("generate", "failed: StoreFull"),
    }
    line = lines["a"]
    assert (line["prompt_tokens"], line["cached_tokens"], line["completion_tokens"]) == (2, 0, 1)
    assert {"queue_s", "time_to_first_token_s", "total_s", "preset"} <= set(line)
    assert "prompt" not in line


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


async def test_a_request_whose_client_does_not_read_rests_and_loses_nothing() -> None:
    """Nothing grows in the server; others go on, and so does it when it is read."""
    async with running(max_seq_len=1200, pages=600) as (coordinator, worker):
        unread = coordinator.generate(GenerateParams([1, 2], max_new_tokens=900))
        others = [token_ids(await collect(coordinator, prompt=[3], max_new_tokens=600)) for _ in range(2)]
        await until(lambda: len(worker.sessions) == 1)
        await asyncio.sleep(0.01)
        steps = len(worker.plans)
        await asyncio.sleep(0.05)
        assert len(worker.plans) == steps, "the loop must not spin"
        decoded = sum(s.session_id == 1 for plan in worker.plans for s in plan.segments)
        assert decoded == MOST_UNREAD - 1, "one event is of progress, and the first token comes with it"
        events = [event async for event in unread]
    assert others == [expected([3], 600)] * 2
    assert token_ids(events) == expected([1, 2], 900)
