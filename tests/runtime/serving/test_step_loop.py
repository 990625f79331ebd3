"""Exceptions in the worker, in planning, in delivery, in the scheduler: the server goes on, or says why not."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import structlog

from moorage.runtime.serving.capacity import Capacity, Resources
from moorage.runtime.serving.coordinator import Coordinator
from moorage.runtime.serving.executor import LocalExecutor
from moorage.runtime.serving.health import MOST_IN_A_ROW
from moorage.runtime.serving.protocol import Finished, GenerateParams
from moorage.runtime.serving.request import Request
from moorage.workers.errors import Internal, MoorageError, ResourceExhausted, Unavailable
from moorage.workers.gpu.engine.batch import DecodeStep
from moorage.workers.spec import StepPlan, StepResult
from tests.counting_executor import collect, expected, running, token_ids, until
from tests.engine_driver import Driver
from tests.tiny_models import TinyModel, build_tiny_checkpoint

SECRET = "a user's words"


def all_resources_are_free(coordinator: Coordinator) -> bool:
    scheduler = coordinator._loop.scheduler
    held = [session.resources for session in scheduler.idle]
    free = scheduler.free
    for resources in held:
        free = free.plus(resources)
    return free == scheduler.limits.resources


async def test_a_step_that_raises_ends_its_requests_and_the_others_go_on() -> None:
    with structlog.testing.capture_logs() as logs:
        async with running(pages=200) as (coordinator, worker):
            await collect(coordinator, prompt=[1, 2, 3], max_new_tokens=4, session="idle")
            doomed = [
                asyncio.create_task(collect(coordinator, prompt=[n], max_new_tokens=90)) for n in range(4)
            ]
            await until(lambda: len(worker.sessions) == 5)
            waits = asyncio.create_task(collect(coordinator, prompt=[5], max_new_tokens=9))
            worker.raises.append(Internal("KeyError: 'weights'", "Traceback ...\nKeyError: 'weights'"))
            ends = await asyncio.gather(*doomed, return_exceptions=True)
            assert token_ids(await waits) == expected([5], 9)
            await until(lambda: len(worker.sessions) == 1)
            kept = await collect(coordinator, prompt=[1, 2, 3, *expected([1, 2, 3], 4)], session="idle")
            status = await coordinator.status()
            await until(lambda: all_resources_are_free(coordinator))
    assert all(type(end) is MoorageError for end in ends)
    failure = next(entry for entry in logs if entry["event"] == "step failed")
    assert failure["error_id"] in str(ends[0])
    assert "KeyError: 'weights'" in failure["exception"]
    assert sorted(failure["requests"].values()) == [2, 3, 4, 5], "the worker's sessions, by request id"
    assert isinstance(kept[-1], Finished)
    assert kept[-1].usage.cached_tokens == 6
    assert (status.state, status.failed_steps_total, status.running) == ("serving", 1, 0)


async def test_want_of_memory_is_told_to_the_clients_of_the_step() -> None:
    async with running() as (coordinator, worker):
        worker.raises.append(ResourceExhausted("the worker has no memory left for a step"))
        with pytest.raises(ResourceExhausted, match="no memory left"):
            await collect(coordinator, prompt=[1], max_new_tokens=3)
        assert token_ids(await collect(coordinator, prompt=[1], max_new_tokens=3)) == expected([1], 3)


async def test_drops_of_a_step_that_failed_come_again() -> None:
    async with running() as (coordinator, worker):
        gone = coordinator.generate(GenerateParams([1], max_new_tokens=90))
        await anext(gone)
        worker.drops_fail = True
        worker.raises.append(RuntimeError("before the drops"))
        await gone.aclose()
        await until(lambda: not worker.raises)
        worker.drops_fail = False
        await until(lambda: not worker.sessions)
        assert token_ids(await collect(coordinator, prompt=[2], max_new_tokens=2)) == expected([2], 2)
        await until(lambda: all_resources_are_free(coordinator))


class OddTokenizer:
    """Its text of token 4 can't be made."""

    special_ids: frozenset[int] = frozenset()

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        del text, add_special_tokens
        return []

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        del skip_special_tokens
        if 4 in token_ids:
            raise UnicodeError(SECRET)
        return "".join(map(str, token_ids))


async def test_text_that_can_not_be_made_ends_its_request_alone() -> None:
    with structlog.testing.capture_logs() as logs:
        async with running(replaced={"tokenizer": OddTokenizer()}) as (coordinator, worker):
            good = asyncio.create_task(collect(coordinator, prompt=[0], max_new_tokens=50))
            await until(lambda: bool(worker.sessions))
            with pytest.raises(MoorageError, match="internal error"):
                await collect(coordinator, prompt=[2, 2], max_new_tokens=3, session="talk")
            assert token_ids(await good) == [0] * 50
            await until(lambda: not worker.sessions)
            assert all_resources_are_free(coordinator)
    failure = next(entry for entry in logs if entry["event"] == "processing a request's output failed")
    assert "in _token" in failure["exception"]
    assert SECRET not in str(logs)


async def test_planning_that_raises_ends_the_requests_of_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running() as (coordinator, worker):
        with monkeypatch.context() as broken:
            broken.setattr(Request, "prefill_segment", lambda _request, _chunk: 1 // 0)
            with pytest.raises(MoorageError, match="internal error"):
                await collect(coordinator, prompt=[1], max_new_tokens=2)
        assert token_ids(await collect(coordinator, prompt=[1], max_new_tokens=2)) == expected([1], 2)
        await until(lambda: not worker.sessions)
        assert all_resources_are_free(coordinator)


async def test_a_scheduler_that_raises_starts_anew_without_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    with structlog.testing.capture_logs() as logs:
        async with running() as (coordinator, worker):
            await collect(coordinator, prompt=[1, 2], max_new_tokens=2, session="idle")
            running_one = asyncio.create_task(collect(coordinator, prompt=[3], max_new_tokens=150))
            await until(lambda: len(worker.sessions) == 2)
            monkeypatch.setattr(coordinator._loop.scheduler, "_turn", None)
            with pytest.raises(MoorageError, match="internal error"):
                await collect(coordinator, prompt=[4], max_new_tokens=2)
            with pytest.raises(MoorageError, match="internal error"):
                await running_one
            again = await collect(coordinator, prompt=[1, 2], max_new_tokens=2, session="idle")
            await until(lambda: len(worker.idle) == len(worker.sessions) == 1)
            assert all_resources_are_free(coordinator)
    assert isinstance(again[-1], Finished)
    assert again[-1].usage.cached_tokens == 0
    assert "scheduling failed" in [entry["event"] for entry in logs]


async def test_a_worker_that_fails_without_a_request_as_well_ends_the_cluster_with_a_last_word() -> None:
    with structlog.testing.capture_logs() as logs:
        async with running() as (coordinator, worker):
            worker.raises += [RuntimeError("the device is lost") for _ in range(MOST_IN_A_ROW + 1)]
            for _ in range(MOST_IN_A_ROW):
                with pytest.raises(MoorageError):
                    await collect(coordinator, prompt=[1], max_new_tokens=2)
            await until(lambda: coordinator.health.problem is not None)
            with pytest.raises(
                Unavailable, match="6 steps in a row failed, the last one, without any request"
            ):
                await collect(coordinator, prompt=[1], max_new_tokens=2)
            status = await coordinator.status()
    assert status.state == "failed"
    assert "the device is lost" in status.failure
    assert logs[-1]["event"] == "the cluster has failed"


async def test_a_session_that_can_not_become_idle_ends_the_cluster_with_a_last_word(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What every step repeats and no step can do would fail all requests for ever."""
    async with running() as (coordinator, worker):
        step = worker.execute

        async def failing(plan: StepPlan) -> StepResult:
            if plan.idles:
                raise RuntimeError("never")
            return await step(plan)

        monkeypatch.setattr(worker, "execute", failing)
        await collect(coordinator, prompt=[1], max_new_tokens=2, session="poisoned")
        await until(lambda: coordinator.health.problem is not None)
        with pytest.raises(Unavailable, match=f"{MOST_IN_A_ROW + 1} steps in a row failed"):
            await collect(coordinator, prompt=[1], max_new_tokens=2)


async def test_odd_requests_alone_do_not_end_the_cluster() -> None:
    async with running() as (coordinator, worker):
        for _ in range(3):
            worker.raises += [RuntimeError("one request is odd") for _ in range(MOST_IN_A_ROW)]
            for _ in range(MOST_IN_A_ROW):
                with pytest.raises(MoorageError, match="internal error"):
                    await collect(coordinator, prompt=[1], max_new_tokens=2)
            await until(lambda: not coordinator._loop.failures.many_in_a_row)
        assert token_ids(await collect(coordinator, prompt=[2], max_new_tokens=2)) == expected([2], 2)
        await until(lambda: not worker.sessions)


class Death(BaseException):
    """What no handler catches."""


async def test_the_end_of_the_loop_itself_is_noticed() -> None:
    async with running() as (coordinator, worker):
        worker.raises.append(Death())
        with pytest.raises(Unavailable, match="the coordinator ended"):
            await collect(coordinator, prompt=[1], max_new_tokens=2)
        with pytest.raises(Unavailable):
            await collect(coordinator, prompt=[1], max_new_tokens=2)
        assert (await coordinator.status()).state == "failed"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return build_tiny_checkpoint("llama3", tmp_path_factory.mktemp("llama3"))


async def test_with_a_real_engine_the_session_that_raises_fails_and_all_its_kv_comes_back(
    llama: TinyModel,
) -> None:
    driver = Driver(Path(llama.directory), llama.spec)
    engine, layout = driver.worker.engine, driver.stores[0].layout
    resources = Resources((128, 128), 4096)
    replaced: dict[str, Any] = {
        "executor": LocalExecutor(driver.worker, driver.stores),
        "capacity": Capacity(layout, resources, 2, None),
    }
    fail = False

    def broken(step: DecodeStep, _layer: int, _attended: object) -> None:
        if fail and step.session.session_id == 2:
            raise ZeroDivisionError

    engine.observe(broken)
    with structlog.testing.capture_logs() as logs:
        async with running(replaced=replaced, resources=resources) as (coordinator, _):
            want = token_ids(await collect(coordinator, prompt=[5, 6, 7], max_new_tokens=40, ignore_eos=True))
            bad = coordinator.generate(GenerateParams([1, 2], max_new_tokens=90, ignore_eos=True))
            await anext(bad)
            good = asyncio.create_task(
                collect(coordinator, prompt=[5, 6, 7], max_new_tokens=40, ignore_eos=True)
            )
            await until(lambda: 3 in engine.sessions)
            fail = True
            with pytest.raises(MoorageError, match="internal error"):
                _ = [event async for event in bad]
            assert token_ids(await good) == want
            await until(lambda: not engine.sessions)
            assert all_resources_are_free(coordinator)
            engine.check_integrity()
            assert engine.num_free_slots == engine.num_slots
            assert [store.stats().free_pages for store in driver.stores] == [128, 128]
    failure = next(entry for entry in logs if entry["event"] == "a session's step failed")
    assert "in broken" in failure["exception"]
