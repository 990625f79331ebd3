"""What is refused under load, by the wait that the measured speed lets expect, and before prompts are read."""

from __future__ import annotations

from contextlib import AsyncExitStack, aclosing

import pytest

from moorage.runtime.serving.protocol import GenerateParams
from moorage.workers.errors import ResourceExhausted, Unavailable
from tests.counting_executor import collect, running, until

LONG = GenerateParams([1] * 9, max_new_tokens=200)


async def test_what_would_be_refused_whatever_it_asks_is_known_before_its_prompt() -> None:
    """`check_load` refuses when, and only when, a queued request would be refused, since as many run as may."""
    async with AsyncExitStack() as held, running(max_wait_s=100.0, pages=800) as (coordinator, worker):
        worker.elapsed_s = 0.1
        await collect(coordinator, prompt=[1] * 9, max_new_tokens=40)
        for _ in range(4):
            held.push_async_callback(coordinator.generate(LONG).aclose)
        await until(lambda: len(coordinator._loop.scheduler.running) == 4)
        told: list[str] = []
        while len(told) < 2:
            for ask in (coordinator.check_load, lambda: coordinator.generate(LONG)):
                try:
                    stream = ask()
                except ResourceExhausted as error:
                    told.append(f"{error} {error.retry_after_s}")
                else:
                    assert told == [], "the early check is never the stricter one"
                    if stream is not None:
                        held.push_async_callback(stream.aclose)
        assert told[0] == told[1]
        assert not told[0].endswith("None")
        assert "longer than server.max_wait allows (100 s)" in told[0]
        coordinator.check_load("another tenant, whose request would come first")


async def test_a_full_queue_is_known_before_a_prompt() -> None:
    async with AsyncExitStack() as held, running() as (coordinator, _):
        for _ in range(8):
            coordinator.check_load()
            held.push_async_callback(coordinator.generate(LONG).aclose)
        with pytest.raises(ResourceExhausted, match="queue is full"):
            coordinator.check_load()
        coordinator.check_load("another")


async def test_a_cluster_that_has_failed_is_known_before_a_prompt() -> None:
    async with running() as (coordinator, worker):
        coordinator.check_load()
        worker.health.report("a store", "the store is gone", fatal=True)
        with pytest.raises(Unavailable, match="the store is gone"):
            coordinator.check_load()


@pytest.mark.parametrize(("prompt_tokens", "is_refused"), [(20, False), (100, True)])
async def test_a_prompt_may_be_delayed_by_others_that_are_read_as_long_as_it_may_wait(
    prompt_tokens: int, is_refused: bool
) -> None:
    """Prompts get equal shares of a step, so a long one delays a short one by no more than the short one takes."""
    async with running(max_wait_s=0.4, pages=800) as (coordinator, worker):
        worker.elapsed_s = 0.1
        await collect(coordinator, prompt=[1] * 10, max_new_tokens=10)  # 10 ms a token
        async with aclosing(coordinator.generate(GenerateParams([2] * 150, max_new_tokens=4))):
            asked = GenerateParams([3] * prompt_tokens, max_new_tokens=4)
            if is_refused:
                with pytest.raises(ResourceExhausted, match="read beside it would delay it by 1 s"):
                    coordinator.generate(asked)
                assert len(coordinator._loop.requests) == 1
            else:
                await coordinator.generate(asked).aclose()


async def test_what_a_session_holds_of_a_prompt_is_not_delayed() -> None:
    async with running(max_wait_s=0.4, pages=800) as (coordinator, worker):
        worker.elapsed_s = 0.1
        talk = [n % 7 for n in range(80)]
        await collect(coordinator, prompt=talk, max_new_tokens=4, session="talk")
        async with aclosing(coordinator.generate(GenerateParams([2] * 100, max_new_tokens=4))):
            with pytest.raises(ResourceExhausted, match="read beside it"):
                coordinator.generate(GenerateParams(talk, max_new_tokens=4, session="another"))
            await coordinator.generate(GenerateParams(talk, max_new_tokens=4, session="talk")).aclose()
