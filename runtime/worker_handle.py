"""How the coordinator reaches its GPU worker."""

from __future__ import annotations

from typing import Any, Protocol

from moorage.workers.errors import Internal, MoorageError, Unavailable
from moorage.workers.spec import StepPlan, StepResult


class WorkerHandle(Protocol):
    """Runs steps, one at a time."""

    pid: int

    async def step(self, plan: StepPlan) -> StepResult:
        """One forward pass. Raises Unavailable when the worker or a KV actor is gone.

        Whatever else it raises, the worker has dropped the step's sessions and goes on: ResourceExhausted for want
        of memory, Internal with the worker's traceback for the unexpected."""


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
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, MoorageError):
                raise cause from None
            raise Internal(f"{type(cause or error).__name__}: {cause or ''}", str(error)) from None
        return result
