"""How the coordinator reaches its GPU worker."""

from __future__ import annotations

from typing import Any, Protocol

from moorage.workers.errors import Unavailable
from moorage.workers.spec import StepPlan, StepResult


class WorkerHandle(Protocol):
    """Runs steps, one at a time."""

    pid: int

    async def step(self, plan: StepPlan) -> StepResult:
        """One forward pass. Raises Unavailable when the worker or a KV actor is gone, and what the step raised."""


class RayWorker:
    """A GPU worker behind a Ray actor."""

    def __init__(self, actor: Any, pid: int) -> None:
        self._actor = actor
        self.pid = pid

    async def step(self, plan: StepPlan) -> StepResult:
        """See WorkerHandle."""
        import ray.exceptions

        try:
            result: StepResult = await self._actor.step.remote(plan)
        except ray.exceptions.RayActorError as error:
            raise Unavailable(
                f"GPU worker (pid {self.pid}) is gone; start the cluster again with `runtime launch`"
            ) from error
        except ray.exceptions.RayTaskError as error:
            # Ray's message is a traceback of many lines; the cause is the error as the worker raised it.
            if isinstance(error.cause, Exception):
                raise error.cause from None
            raise
        return result
