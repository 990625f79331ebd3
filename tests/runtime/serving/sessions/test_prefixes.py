"""Requests use the blocks of other sessions by themselves, and mean what they would mean without."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from moorage.runtime.serving.coordinator import Coordinator
from moorage.runtime.serving.protocol import Finished, GenerateParams, Progress, ScoreParams
from moorage.runtime.serving.sessions.records import SessionPolicy
from tests.counting_executor import LAYOUT, CountingExecutor, collect, expected, running, token_ids, until

DOCUMENT = [n * n % 9 for n in range(40)]


@asynccontextmanager
async def sharing(**changes: Any) -> AsyncIterator[tuple[Coordinator, CountingExecutor]]:
    replaced = {"sessions": SessionPolicy(prefixes=True)} | changes.pop("replaced", {})
    async with running(replaced=replaced, **changes) as both:
        yield both


async def ask(coordinator: Coordinator, prompt: list[int], **params: Any) -> int:
    """How many tokens of the prompt were cached; the answer must be that of a fresh session."""
    events = await collect(coordinator, prompt=prompt, max_new_tokens=3, **params)
    assert token_ids(events) == expected(prompt, 3)
    assert isinstance(events[-1], Finished)
    return events[-1].usage.cached_tokens


async def test_a_second_question_about_a_document_pays_only_for_itself() -> None:
    async with sharing() as (coordinator, _):
        assert await ask(coordinator, [*DOCUMENT, 1, 2]) == 0
        assert await ask(coordinator, [*DOCUMENT, 7, 7, 7]) == 40
        assert await ask(coordinator, [*DOCUMENT[:30], 8, 8]) == 28, "whole blocks"
        assert await ask(coordinator, [8, *DOCUMENT]) == 0


async def test_a_conversation_without_a_name_goes_on_where_it_ended() -> None:
    async with sharing() as (coordinator, worker):
        said, before = [*DOCUMENT], 0
        for turn in range(5):
            cached = await ask(coordinator, said)
            assert cached == (before + 2 if turn else 0)
            before = len(said)
            said = [*said, *expected(said, 3), 5, 5]
        await until(lambda: len(worker.idle) == 1)
        assert len(worker.sessions) == 1, "each turn took over what the one before had left"


async def test_a_named_session_is_shared_and_never_taken_over() -> None:
    async with sharing() as (coordinator, worker):
        await ask(coordinator, DOCUMENT, session="document")
        assert await ask(coordinator, [*DOCUMENT, 3, 1]) == 40
        assert await ask(coordinator, [*DOCUMENT, 4, 1], session="other") == 40
        names = {info.name: info.shared_bytes for info in await coordinator.sessions.list()}
        assert names == {"document": 10 * LAYOUT.page_bytes, "other": 10 * LAYOUT.page_bytes}
        assert await ask(coordinator, [*DOCUMENT, 2], session="document") == 40
        pages = {page for table in worker.tables.values() for page in table}
        assert len(pages) <= 10 + 3 * 2


async def test_tenants_share_nothing() -> None:
    async with sharing() as (coordinator, _):
        await ask(coordinator, [*DOCUMENT, 1], tenant="ann")
        assert await ask(coordinator, [*DOCUMENT, 2], tenant="bob") == 0
        assert await ask(coordinator, [*DOCUMENT, 2]) == 0
        assert await ask(coordinator, [*DOCUMENT, 3], tenant="ann") == 40


async def test_other_positions_share_nothing() -> None:
    async with sharing() as (coordinator, _):
        await ask(coordinator, [*DOCUMENT, 1])
        assert await ask(coordinator, [*DOCUMENT, 2], preset="clamped") == 0
        assert await ask(coordinator, [*DOCUMENT, 3], preset="clamped") == 40


async def test_the_same_prompt_runs_at_least_its_last_block_again() -> None:
    async with sharing() as (coordinator, _):
        await ask(coordinator, DOCUMENT, session="talk")
        assert await ask(coordinator, DOCUMENT, session="again") == 36
        assert await ask(coordinator, DOCUMENT, session="talk") == 39


async def test_two_requests_of_one_step_compute_their_prefix_each() -> None:
    """Blocks that a step is about to compute are nobody's to use."""
    async with sharing() as (coordinator, _):
        cached = await asyncio.gather(*(ask(coordinator, [*DOCUMENT, number]) for number in range(3)))
        assert cached == [0, 0, 0]
        assert await ask(coordinator, [*DOCUMENT, 4]) == 40


async def test_a_prefill_that_was_cut_short_serves_as_far_as_it_came() -> None:
    prompt = [*DOCUMENT, *DOCUMENT, *DOCUMENT]
    async with sharing() as (coordinator, worker):
        events = coordinator.generate(GenerateParams(prompt, max_new_tokens=2))
        async for event in events:
            if isinstance(event, Progress):
                break
        await events.aclose()
        await until(lambda: len(worker.idle) == 1)
        cached = await ask(coordinator, prompt)
    assert 16 <= cached < 120


async def test_nothing_is_found_of_what_was_evicted_or_cut_off() -> None:
    async with sharing(pages=20) as (coordinator, worker):
        await ask(coordinator, DOCUMENT, session="talk")
        await ask(coordinator, [*DOCUMENT[:22], 8, 8, 8], session="talk")
        assert await ask(coordinator, [*DOCUMENT, 1]) == 20, "the rest of it was cut off"
        await ask(coordinator, [3] * 60)
        await until(lambda: len(worker.idle) == 1)
        assert await ask(coordinator, [*DOCUMENT, 2]) == 0, "all of it was evicted"


async def test_unnamed_sessions_go_before_named_ones_and_are_not_listed() -> None:
    async with sharing(pages=20) as (coordinator, _):
        await ask(coordinator, [7] * 20, session="named")
        await ask(coordinator, [5] * 20)
        assert [info.name for info in await coordinator.sessions.list()] == ["named"]
        await ask(coordinator, [1] * 40)
        assert await ask(coordinator, [7] * 20, session="named") == 19


async def test_a_score_neither_uses_nor_leaves_blocks() -> None:
    async with sharing() as (coordinator, worker):
        await ask(coordinator, DOCUMENT)
        events = [event async for event in coordinator.score(ScoreParams(DOCUMENT))]
        assert isinstance(events[-1], Finished)
        assert events[-1].usage.cached_tokens == 0
        await until(lambda: len(worker.sessions) == 1)


async def test_a_step_that_fails_leaves_no_block_behind() -> None:
    async with sharing() as (coordinator, worker):
        await ask(coordinator, [*DOCUMENT, 1], session="talk")
        worker.raises = [RuntimeError("boom")]
        with pytest.raises(Exception, match="internal error"):
            await ask(coordinator, [*DOCUMENT, 2])
        assert await ask(coordinator, [*DOCUMENT, 3]) == 40
        await coordinator.sessions.delete("talk")
        await ask(coordinator, [4] * 190)
        await until(lambda: len(worker.tables) <= 2)
        assert len({page for table in worker.tables.values() for page in table}) <= 64


async def test_any_mix_of_prompts_means_what_each_means_alone() -> None:
    """Pages never run out for what was admitted, and all are free in the end."""
    rng = np.random.default_rng(3)
    async with sharing(pages=40) as (coordinator, worker):
        texts = [rng.integers(0, 9, 60).tolist() for _ in range(3)]
        total = 0
        for _ in range(80):
            asked: list[tuple[list[int], str | None]] = []
            for name in {None, *rng.permutation(["a", "b", "c"])[:2].tolist()}:
                text = texts[rng.integers(3)][: rng.integers(60)]
                asked.append(([*text, *rng.integers(0, 9, rng.integers(1, 9)).tolist()], name))
            total += sum(
                await asyncio.gather(*(ask(coordinator, prompt, session=name) for prompt, name in asked))
            )
        assert total > 1000
        for info in await coordinator.sessions.list():
            await coordinator.sessions.delete(info.name)
        await ask(coordinator, [3] * 155)
        await until(lambda: len(worker.sessions) == 1)


async def test_the_index_has_the_blocks_that_idle_sessions_hold_and_no_others() -> None:
    prompt = [*DOCUMENT, *DOCUMENT, *DOCUMENT]
    async with sharing() as (coordinator, worker):
        index = coordinator._loop.scheduler.idle.index
        events = coordinator.generate(GenerateParams(prompt, max_new_tokens=2, session="cut"))
        async for event in events:
            if isinstance(event, Progress):
                break
        await events.aclose()
        await until(lambda: len(worker.idle) == 1)
        (info,) = await coordinator.sessions.list()
        assert len(index) == info.num_tokens // LAYOUT.block_size < 30, "what was not computed is not there"
        await coordinator.sessions.delete("cut")
        assert len(index) == 0, "what was dropped is not there"


async def test_a_longer_session_that_is_gone_does_not_hide_a_shorter_one() -> None:
    async with sharing() as (coordinator, _):
        await ask(coordinator, [*DOCUMENT[:20], 8], session="short")
        await ask(coordinator, [*DOCUMENT, 1], session="long")
        await coordinator.sessions.delete("long")
        assert await ask(coordinator, [*DOCUMENT, 2]) == 20
