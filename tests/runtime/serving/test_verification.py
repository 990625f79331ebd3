"""Requests whose steps bring no token, and then several: drafts that the worker verifies."""

from __future__ import annotations

import asyncio

from moorage.runtime.serving.protocol import Finished, GenerateParams, Token
from moorage.runtime.serving.usage import Usage
from tests.counting_executor import collect, expected, running, token_ids

PROMPT = [n % 9 for n in range(20)]


def usage_of(events: list[object]) -> Usage:
    assert isinstance(events[-1], Finished)
    return events[-1].usage


async def test_all_tokens_of_a_step_are_events_and_counted() -> None:
    async with running() as (coordinator, worker):
        events = await collect(coordinator, prompt=PROMPT, max_new_tokens=30, preset="verified")
        status = await coordinator.status()
    assert token_ids(events) == expected(PROMPT, 30)
    assert [event.index for event in events if isinstance(event, Token)] == list(range(30))
    usage = usage_of(events)
    assert usage.completion_tokens == status.generated_tokens_total == 30
    assert 0 < usage.accepted_tokens < usage.drafted_tokens
    assert usage.drafted_tokens % 3 == 0
    assert usage.chosen_blocks == 3, "of the steps that draft; those that verify attend everything"
    rounds = usage.drafted_tokens // 3
    assert sum(len(plan.segments) for plan in worker.plans) == 2 + 4 * rounds
    assert usage.accepted_tokens + rounds == 29, "each round brings a token beside the accepted ones"


async def test_max_new_tokens_ends_a_request_within_a_step() -> None:
    for count in range(1, 12):
        async with running() as (coordinator, _):
            events = await collect(coordinator, prompt=PROMPT, max_new_tokens=count, preset="verified")
        assert token_ids(events) == expected(PROMPT, count)
        assert isinstance(events[-1], Finished)
        assert events[-1].finish_reason == "length"


async def test_an_eos_token_within_a_step_ends_the_answer_there() -> None:
    answer = expected(PROMPT, 40)
    for eos in set(answer):
        async with running(eos=eos) as (coordinator, _):
            events = await collect(coordinator, prompt=PROMPT, max_new_tokens=40, preset="verified")
        assert token_ids(events) == answer[: answer.index(eos) + 1]
        assert isinstance(events[-1], Finished)
        assert events[-1].finish_reason == "stop"


async def test_a_session_goes_on_behind_the_end_of_its_answer() -> None:
    """What the worker verified beyond the end is cut, and takes no memory that was not counted."""
    answer = expected(PROMPT, 40)
    for eos in set(answer):
        async with running(eos=eos, pages=40) as (coordinator, _):
            events = await collect(
                coordinator, prompt=PROMPT, max_new_tokens=40, preset="verified", session="talk"
            )
            longer = [*PROMPT, *token_ids(events), 5, 6]
            again, other = await asyncio.gather(
                collect(
                    coordinator,
                    prompt=longer,
                    max_new_tokens=9,
                    preset="verified",
                    session="talk",
                    ignore_eos=True,
                ),
                collect(coordinator, prompt=PROMPT, max_new_tokens=40, ignore_eos=True),
            )
        assert token_ids(again) == expected(longer, 9)
        assert token_ids(other) == answer
        assert usage_of(again).cached_tokens == len(longer) - 3


async def test_a_request_that_is_cancelled_in_the_midst_of_a_round_leaves_a_session_to_go_on_with() -> None:
    async with running() as (coordinator, _):
        stream = coordinator.generate(
            GenerateParams(PROMPT, max_new_tokens=60, preset="verified", session="talk")
        )
        seen: list[int] = []
        async for event in stream:
            if isinstance(event, Token):
                seen.append(event.token_id)
                if len(seen) == 7:
                    break
        await stream.aclose()  # type: ignore[attr-defined]
        longer = [*PROMPT, *seen, 1]
        events = await collect(
            coordinator, prompt=longer, max_new_tokens=6, preset="verified", session="talk"
        )
    assert token_ids(events) == expected(longer, 6)
    assert usage_of(events).cached_tokens >= len(PROMPT)


async def test_other_sessions_get_a_token_in_every_step() -> None:
    async with running() as (coordinator, worker):
        verified, plain = await asyncio.gather(
            collect(coordinator, prompt=PROMPT, max_new_tokens=30, preset="verified"),
            collect(coordinator, prompt=[1, 2], max_new_tokens=30),
        )
        steps = [plan for plan in worker.plans if any(segment.session_id == 2 for segment in plan.segments)]
    assert token_ids(verified) == expected(PROMPT, 30)
    assert token_ids(plain) == expected([1, 2], 30)
    assert len(steps) == 30
