"""How the coordinator reaches its GPU worker."""

from __future__ import annotations

from typing import Any, Protocol

from moorage.workers.errors import Unavailable
from moorage.workers.spec import StepPlan, StepResult


class StepFailed(Exception):
    """A step raised in the worker, which has dropped the step's sessions and goes on."""

    def __init__(self, reason: Exception, trace: str) -> None:
        super().__init__(str(reason))
        self.reason = reason
        self.trace = trace
        """The worker's traceback."""


class WorkerHandle(Protocol):
    """Runs steps, one at a time."""

    pid: int

    async def step(self, plan: StepPlan) -> StepResult:
        """One forward pass. Raises Unavailable when the worker is gone, StepFailed when the step raised there."""


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
                f"GPU worker (pid {self.pid}) is gone; start the cluster again: {type(error).__name__}"
            ) from error
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, Unavailable):
                raise cause from None
            raise StepFailed(cause if isinstance(cause, Exception) else error, str(error)) from None
        return result
