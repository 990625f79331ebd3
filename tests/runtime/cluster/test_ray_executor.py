"""The errors of a worker behind Ray, as the coordinator gets them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import ray.exceptions
import structlog

from moorage.runtime.cluster import ray_executor
from moorage.runtime.cluster.ray_executor import RayWorker
from moorage.workers.errors import Internal, MoorageError, PeerDead, ResourceExhausted, Unavailable
from moorage.workers.spec import StepPlan, StepResult

TRACE = "ray::GpuWorkerShell.step() (pid=7)\n  File engine.py, line 1, in step\n"


def worker_whose_step_raises(error: Exception) -> RayWorker:
    class Step:
        async def remote(self, plan: StepPlan) -> Any:
            del plan
            raise error

    class Actor:
        step = Step()

    return RayWorker(Actor(), 7)


def task_error(cause: Exception) -> Exception:
    """As Ray raises it: of a class that derives from the cause's as well."""
    error: Exception = ray.exceptions.RayTaskError("step", TRACE + repr(cause), cause).as_instanceof_cause()
    return error


@pytest.mark.parametrize("cause", [ResourceExhausted("no memory"), PeerDead("kv-0 is gone")])
async def test_errors_of_ours_come_as_they_were_raised(cause: MoorageError) -> None:
    with pytest.raises(type(cause)) as heard:
        await worker_whose_step_raises(task_error(cause)).step(StepPlan(1))
    assert heard.value is cause


async def test_the_unexpected_comes_with_the_workers_traceback() -> None:
    with pytest.raises(Internal, match=r"^ZeroDivisionError: division by zero$") as heard:
        await worker_whose_step_raises(task_error(ZeroDivisionError("division by zero"))).step(StepPlan(1))
    assert "in step" in heard.value.trace


async def test_what_ray_itself_fails_with_is_unexpected_too() -> None:
    with pytest.raises(Internal, match="RaySystemError"):
        await worker_whose_step_raises(ray.exceptions.RaySystemError("odd")).step(StepPlan(1))


async def test_a_dead_worker_is_told_with_its_pid() -> None:
    with pytest.raises(Unavailable, match=r"GPU worker \(pid 7\) is gone"):
        await worker_whose_step_raises(ray.exceptions.ActorDiedError()).step(StepPlan(1))


async def test_a_step_that_takes_long_is_in_the_log_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_executor, "LONG_STEP_S", 0.01)
    answer: asyncio.Future[StepResult] = asyncio.get_running_loop().create_future()

    class Step:
        def remote(self, plan: StepPlan) -> Any:
            del plan
            return answer

    class Actor:
        step = Step()

    with structlog.testing.capture_logs() as lines:
        step = asyncio.create_task(RayWorker(Actor(), 7).step(StepPlan(1)))
        while len(lines) < 3:
            await asyncio.sleep(0.01)
        answer.set_result(StepResult(1, (), 0.0))
        assert (await step).step_id == 1
    assert {(line["event"], line["worker_pid"]) for line in lines} == {("a step takes long", 7)}
