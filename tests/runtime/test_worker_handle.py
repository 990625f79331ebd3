"""What the coordinator hears of a worker behind Ray, whatever Ray makes of it."""

from __future__ import annotations

from typing import Any

import pytest
import ray.exceptions

from moorage.runtime.worker_handle import RayWorker
from moorage.workers.errors import Internal, MoorageError, PeerDead, ResourceExhausted, Unavailable
from moorage.workers.spec import StepPlan

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
