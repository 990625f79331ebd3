"""Operations on sessions, over a small deterministic executor: what they change, and when they are refused."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from contextlib import suppress

import numpy as np
import pytest

from moorage.runtime.serving.capacity import Capacity, Resources
from moorage.runtime.serving.coordinator import Coordinator
from moorage.runtime.serving.protocol import Finished, GenerateParams, Progress, Token
from moorage.runtime.serving.sessions.records import SessionPolicy
from moorage.workers.errors import FailedPrecondition, NotFound, ResourceExhausted
from moorage.workers.spec import AnchorType
from tests.counting_executor import LAYOUT, collect, expected, running, token_ids, until


async def names(coordinator: Coordinator, tenant: str = "") -> list[str]:
    return [info.name for info in await coordinator.sessions.list(tenant)]


async def hold(coordinator: Coordinator, name: str, tokens: int = 10, tenant: str = "") -> None:
    """A finished request leaves a session of `tokens` tokens."""
    await collect(coordinator, prompt=[1] * tokens, max_new_tokens=1, session=name, tenant=tenant)


async def cached(coordinator: Coordinator, name: str, tokens: int = 10, tenant: str = "") -> int:
    """How many tokens of the prompt of `hold` a session saves."""
    events = await collect(coordinator, prompt=[1] * tokens, max_new_tokens=1, session=name, tenant=tenant)
    assert isinstance(events[-1], Finished)
    return events[-1].usage.cached_tokens


async def test_a_list_shows_tokens_memory_and_use() -> None:
    before_s = time.time()
    async with running() as (coordinator, _):
        await hold(coordinator, "first", 10)
        await hold(coordinator, "second", 30)
        await hold(coordinator, "first", 14)
        second, first = await coordinator.sessions.list()
    assert (first.name, first.num_tokens, first.state) == ("first", 14, "idle")
    assert (second.name, second.num_tokens) == ("second", 30)
    assert second.dram_bytes == LAYOUT.num_blocks(30) * LAYOUT.page_bytes
    assert before_s <= second.last_used_s <= first.last_used_s <= time.time()
    assert (first.pinned, first.expires_s, first.tenant, first.shared_bytes) == (False, None, "", 0)


async def test_a_deleted_session_is_gone_from_the_worker_and_begins_anew() -> None:
    async with running() as (coordinator, worker):
        await hold(coordinator, "talk")
        assert await cached(coordinator, "talk") == 9
        await coordinator.sessions.delete("talk")
        assert await names(coordinator) == []
        await until(lambda: not worker.sessions)
        assert await cached(coordinator, "talk") == 0
        await coordinator.sessions.delete("talk")
        await until(lambda: not worker.blocks)
        with pytest.raises(NotFound, match="session: 'talk' is not held here"):
            await coordinator.sessions.delete("talk")


async def test_a_session_in_use_is_neither_deleted_nor_renamed() -> None:
    async with running() as (coordinator, _):
        events = coordinator.generate(GenerateParams([1, 2, 3], max_new_tokens=150, session="talk"))
        async for event in events:
            if isinstance(event, Token):
                break
        with pytest.raises(FailedPrecondition, match="'talk' is in use by a request"):
            await coordinator.sessions.delete("talk")
        with pytest.raises(FailedPrecondition, match="in use"):
            await coordinator.sessions.rename("talk", "other")
        (info,) = await coordinator.sessions.list()
        assert (info.state, info.num_tokens >= 4) == ("running", True)
        await events.aclose()
        await coordinator.sessions.delete("talk")
        assert await names(coordinator) == []


async def test_a_renamed_session_keeps_its_tokens_its_place_and_its_pin() -> None:
    async with running() as (coordinator, _):
        await hold(coordinator, "old")
        await hold(coordinator, "later")
        await coordinator.sessions.pin("old")
        renamed = await coordinator.sessions.rename("old", "new")
        assert (renamed.name, renamed.num_tokens, renamed.pinned) == ("new", 10, True)
        assert await names(coordinator) == ["new", "later"]
        assert (await cached(coordinator, "new"), await cached(coordinator, "old")) == (9, 0)
        with pytest.raises(FailedPrecondition, match="'later' exists already"):
            await coordinator.sessions.rename("new", "later")
        with pytest.raises(NotFound, match="'absent'"):
            await coordinator.sessions.rename("absent", "other")


async def test_a_pinned_session_stays_while_others_are_evicted() -> None:
    async with running(pages=20) as (coordinator, _):
        await hold(coordinator, "pinned", 30)
        await coordinator.sessions.pin("pinned")
        await hold(coordinator, "other", 30)
        await hold(coordinator, "third", 40)
        assert await names(coordinator) == ["pinned", "third"]
        assert await cached(coordinator, "pinned", 30) == 29


async def test_a_request_that_pinned_sessions_leave_no_memory_is_told_so_and_others_go_on() -> None:
    async with running(pages=20) as (coordinator, _):
        await hold(coordinator, "pinned", 60)
        await coordinator.sessions.pin("pinned")
        with pytest.raises(ResourceExhausted, match="held by 1 pinned session; unpin or delete"):
            await collect(coordinator, prompt=[2] * 30, max_new_tokens=1)
        assert token_ids(await collect(coordinator, prompt=[2] * 5, max_new_tokens=2)) == expected([2] * 5, 2)
        await coordinator.sessions.pin("pinned", False)
        assert len(token_ids(await collect(coordinator, prompt=[2] * 30, max_new_tokens=1))) == 1
        assert await names(coordinator) == []


async def test_a_pin_ends_with_its_session() -> None:
    async with running() as (coordinator, worker):
        await hold(coordinator, "talk")
        await coordinator.sessions.pin("talk")
        await coordinator.sessions.delete("talk")
        await hold(coordinator, "talk")
        assert [info.pinned for info in await coordinator.sessions.list()] == [False]
        await coordinator.sessions.pin("talk")
        worker.fail_session = next(iter(worker.sessions))
        with pytest.raises(ResourceExhausted):
            await hold(coordinator, "talk", 12)
        worker.fail_session = None
        await until(lambda: not worker.sessions)
        await hold(coordinator, "talk")
        assert [info.pinned for info in await coordinator.sessions.list()] == [False]


async def test_tenants_have_sessions_of_their_own() -> None:
    async with running() as (coordinator, _):
        await hold(coordinator, "talk", tenant="ann")
        assert await cached(coordinator, "talk", tenant="bob") == 0
        assert await names(coordinator, "ann") == await names(coordinator, "bob") == ["talk"]
        assert await names(coordinator) == []
        with pytest.raises(NotFound):
            await coordinator.sessions.delete("talk")
        await coordinator.sessions.delete("talk", tenant="bob")
        assert await cached(coordinator, "talk", tenant="ann") == 9


async def test_a_quota_drops_a_tenant_s_own_sessions_the_longest_unused_first() -> None:
    policy = SessionPolicy(quota_bytes=6 * LAYOUT.page_bytes)
    async with running(replaced={"sessions": policy}) as (coordinator, worker):
        await hold(coordinator, "other", 20, tenant="bob")
        for name in ("a", "b", "c"):
            await hold(coordinator, name, 8)
        await coordinator.sessions.pin("a")
        await hold(coordinator, "d", 8)
        assert await names(coordinator) == ["a", "c", "d"]
        assert await names(coordinator, "bob") == ["other"]
        await until(lambda: len(worker.sessions) == 4)


async def test_a_session_whose_time_has_passed_is_dropped_unless_it_is_pinned() -> None:
    async with running(replaced={"sessions": SessionPolicy(ttl_s=0.02)}) as (coordinator, worker):
        await hold(coordinator, "brief")
        await hold(coordinator, "pinned")
        pinned = await coordinator.sessions.pin("pinned")
        assert pinned.expires_s is None
        await until(lambda: len(worker.sessions) == 1)
        assert await names(coordinator) == ["pinned"]
        with suppress(NotFound):  # Its time may have passed at the very moment of the call.
            await coordinator.sessions.pin("pinned", False)
        await until(lambda: not worker.sessions)
        assert await names(coordinator) == []


async def test_a_prefill_that_is_cut_short_serves_the_next_prompt_of_its_session() -> None:
    prompt = [n % 9 for n in range(120)]
    async with running() as (coordinator, worker):
        events = coordinator.generate(GenerateParams(prompt, max_new_tokens=2, session="talk"))
        async for event in events:
            assert isinstance(event, Progress)
            if event.prefilled_tokens >= 48:
                break
        await events.aclose()
        await until(lambda: len(worker.idle) == 1)
        (info,) = await coordinator.sessions.list()
        again = await collect(coordinator, prompt=prompt, max_new_tokens=2, session="talk")
    assert isinstance(again[-1], Finished)
    assert 48 <= info.num_tokens == again[-1].usage.cached_tokens < 120
    assert token_ids(again) == expected(prompt, 2)


async def test_operations_are_refused_and_not_left_waiting_once_the_loop_is_over() -> None:
    async with running() as (coordinator, worker):
        events = coordinator.generate(GenerateParams([1, 2, 3], max_new_tokens=150, session="talk"))
        worker.gone = True
        await until(lambda: coordinator.health.problem is not None)
        await events.aclose()
        async with asyncio.timeout(5):
            with pytest.raises((NotFound, FailedPrecondition)):
                await coordinator.sessions.delete("talk")


async def test_a_fork_shares_all_full_blocks_and_goes_its_own_way() -> None:
    prompt = [n % 9 for n in range(30)]
    async with running() as (coordinator, worker):
        await collect(coordinator, prompt=prompt, max_new_tokens=1, session="talk")
        fork = await coordinator.sessions.fork("talk", "branch")
        page = LAYOUT.page_bytes
        assert (fork.name, fork.num_tokens, fork.dram_bytes, fork.shared_bytes) == (
            "branch",
            28,
            7 * page,
            7 * page,
        )
        talk = (await coordinator.sessions.list())[0]
        assert (talk.num_tokens, talk.dram_bytes, talk.shared_bytes) == (30, 8 * page, 7 * page)
        other = [*prompt[:26], 5, 5, 5]
        branch = await collect(coordinator, prompt=other, max_new_tokens=4, session="branch")
        again = await collect(coordinator, prompt=[*prompt, 4], max_new_tokens=4, session="talk")
        assert (token_ids(branch), token_ids(again)) == (expected(other, 4), expected([*prompt, 4], 4))
        assert [one[-1].usage.cached_tokens for one in (branch, again) if isinstance(one[-1], Finished)] == [
            26,
            30,
        ]
        shared = {info.name: info.shared_bytes for info in await coordinator.sessions.list()}
        assert shared == {"branch": 6 * page, "talk": 6 * page}
        await coordinator.sessions.delete("talk")
        (left,) = await coordinator.sessions.list()
        assert (left.name, left.shared_bytes) == ("branch", 0)
        await coordinator.sessions.delete("branch")
        await until(lambda: not worker.tables)


async def test_forks_count_shared_blocks_once_so_many_fit() -> None:
    async with running(pages=20) as (coordinator, worker):
        await hold(coordinator, "talk", 60)
        for number in range(20):
            await coordinator.sessions.fork("talk", f"branch {number}")
        assert len(await names(coordinator)) == 21
        assert await cached(coordinator, "branch 7", 60) == 59
        assert await cached(coordinator, "talk", 60) == 59
        # What needs the memory evicts all of them: none alone would free a block.
        assert token_ids(await collect(coordinator, prompt=[2] * 60, max_new_tokens=9)) == expected(
            [2] * 60, 9
        )
        assert await names(coordinator) == []
        await until(lambda: not worker.tables)


async def test_a_fork_of_a_session_that_is_deleted_at_once_is_whole() -> None:
    async with running() as (coordinator, _):
        await hold(coordinator, "talk", 20)
        await coordinator.sessions.fork("talk", "branch")
        await coordinator.sessions.delete("talk")
        assert await cached(coordinator, "branch", 20) == 19


async def test_forks_are_refused_for_names_in_use_and_for_blocks_that_can_not_be_shared() -> None:
    async with running() as (coordinator, _):
        await hold(coordinator, "talk")
        await hold(coordinator, "other")
        with pytest.raises(FailedPrecondition, match="'other' exists already"):
            await coordinator.sessions.fork("talk", "other")
        with pytest.raises(NotFound):
            await coordinator.sessions.fork("absent", "branch")
    layout = dataclasses.replace(LAYOUT, anchor_type=AnchorType.DYNAMIC)
    capacity = Capacity(layout, Resources((64,), 10_000), 1, None)
    async with running(replaced={"capacity": capacity}) as (coordinator, _):
        await hold(coordinator, "talk")
        with pytest.raises(FailedPrecondition, match="made anew for each prompt"):
            await coordinator.sessions.fork("talk", "branch")


async def test_any_order_of_turns_forks_and_deletions_means_what_it_would_alone() -> None:
    """Every answer is that of a fresh session, and the worker never runs out of pages that admission counted."""
    rng = np.random.default_rng(7)
    base = rng.integers(0, 9, 40).tolist()
    async with running(pages=24) as (coordinator, worker):
        for number in range(150):
            held = await names(coordinator)
            action = rng.integers(4)
            if action == 0 and held:
                await coordinator.sessions.fork(held[rng.integers(len(held))], f"fork {number}")
            elif action == 1 and held:
                await coordinator.sessions.delete(held[rng.integers(len(held))])
            else:
                asked = {}
                for name in {f"new {number}", *rng.permutation(held)[:2].tolist()}:
                    own = rng.integers(0, 9, rng.integers(1, 12)).tolist()
                    asked[name] = [*base[: rng.integers(40)], *own]
                answers = await asyncio.gather(
                    *(
                        collect(coordinator, prompt=one, max_new_tokens=5, session=name)
                        for name, one in asked.items()
                    )
                )
                for prompt, answer in zip(asked.values(), answers, strict=True):
                    assert token_ids(answer) == expected(prompt, 5)
        for name in await names(coordinator):
            await coordinator.sessions.delete(name)
        await until(lambda: not worker.tables)
        whole = await collect(coordinator, prompt=[3] * 90, max_new_tokens=6)
        assert token_ids(whole) == expected([3] * 90, 6), "all memory is free again"
