"""How the coordinator reaches its GPU worker."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, Protocol

import structlog

from moorage.workers.errors import Internal, MoorageError, Unavailable
from moorage.workers.spec import StepPlan, StepResult

log = structlog.get_logger()

LONG_STEP_S = 60.0
"""After each of which the log says that a step still runs."""


class WorkerHandle(Protocol):
    """Runs steps, one at a time."""

    pid: int

    async def step(self, plan: StepPlan) -> StepResult:
        """One forward pass. Raises Unavailable when the worker or a KV actor is gone.

        Whatever else it raises, the worker has dropped the step's sessions and goes on: ResourceExhausted for want
        of memory, Internal with the worker's traceback for the unexpected.
        """


class RayWorker:
    """A GPU worker behind a Ray actor."""

    def __init__(self, actor: Any, pid: int) -> None:
        self._actor = actor
        self.pid = pid

    async def step(self, plan: StepPlan) -> StepResult:
        """See WorkerHandle."""
        import ray.exceptions

        try:
            return await self._waited_for(self._actor.step.remote(plan))
        except ray.exceptions.RayActorError as error:
            raise Unavailable(
                f"GPU worker (pid {self.pid}) is gone; start the cluster again with `runtime launch`"
            ) from error
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, MoorageError):
                raise cause from None
            raise Internal(f"{type(cause or error).__name__}: {cause or ''}", str(error)) from None

    async def _waited_for(self, call: Awaitable[StepResult]) -> StepResult:
        """Says in the log that a step takes long. It is no alarm: a chunk on a slow host may take minutes."""
        loop, waited_s = asyncio.get_running_loop(), 0.0
        timer: asyncio.TimerHandle

        def wait() -> None:
            nonlocal timer
            timer = loop.call_later(LONG_STEP_S, remark)

        def remark() -> None:
            nonlocal waited_s
            waited_s += LONG_STEP_S
            log.warning("a step takes long", worker_pid=self.pid, waited_s=waited_s)
            wait()

        wait()
        try:
            return await call
        finally:
            timer.cancel()
