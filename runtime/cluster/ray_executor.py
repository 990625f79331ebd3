"""The workers of a cluster as Ray actors, behind the interface that the coordinator knows."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import structlog

from moorage.runtime.cluster.processes import ClusterProcesses
from moorage.runtime.cluster.ray_block_files import RayBlockFiles
from moorage.runtime.serving.health import ClusterHealth
from moorage.runtime.serving.status_records import KvActorStatus
from moorage.workers.errors import Internal, MoorageError, Unavailable
from moorage.workers.spec import StepPlan, StepResult

log = structlog.get_logger()

LONG_STEP_S = 60.0
"""The log says that a step still runs each time that it has taken so much longer."""


class RayExecutor:
    """The one worker of a cluster; see `serving.executor.Executor`."""

    def __init__(self, processes: ClusterProcesses) -> None:
        """`processes` have started."""
        self._processes = processes
        self._worker = RayWorker(processes.worker, processes.worker_pid)

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """See Executor."""
        return (self._worker.pid,)

    @property
    def attention_dtype(self) -> str:
        """See Executor."""
        return self._processes.attention_dtype

    @property
    def health(self) -> ClusterHealth:
        """See Executor."""
        return self._processes.health

    async def execute(self, plan: StepPlan) -> StepResult:
        """See Executor."""
        return await self._worker.step(plan)

    @property
    def block_files(self) -> RayBlockFiles:
        """How blocks of sessions get into files."""
        return RayBlockFiles(self._processes.kv_actors)

    async def kv_actors(self) -> tuple[KvActorStatus, ...]:
        """See Executor."""
        return await self._processes.kv_status()

    async def close(self) -> None:
        """See Executor."""
        await self._processes.stop()


class RayWorker:
    """A GPU worker behind a Ray actor."""

    def __init__(self, actor: Any, pid: int) -> None:
        self._actor = actor
        self.pid = pid

    async def step(self, plan: StepPlan) -> StepResult:
        """Runs one plan. Raises the errors of `Executor.execute`."""
        import ray.exceptions

        try:
            return await self._log_while_it_runs(self._actor.step.remote(plan))
        except ray.exceptions.RayActorError as error:
            raise Unavailable(
                f"GPU worker (pid {self.pid}) is gone; start the cluster again with `runtime launch`"
            ) from error
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, MoorageError):
                raise cause from None
            raise Internal(f"{type(cause or error).__name__}: {cause or ''}", str(error)) from None

    async def _log_while_it_runs(self, call: Awaitable[StepResult]) -> StepResult:
        """Awaits a step, and logs that it takes long. On a slow host a chunk may take minutes."""
        loop, elapsed_s = asyncio.get_running_loop(), 0.0
        timer: asyncio.TimerHandle

        def start_timer() -> None:
            nonlocal timer
            timer = loop.call_later(LONG_STEP_S, log_step)

        def log_step() -> None:
            nonlocal elapsed_s
            elapsed_s += LONG_STEP_S
            log.warning("a step takes long", worker_pid=self.pid, waited_s=elapsed_s)
            start_timer()

        start_timer()
        try:
            return await call
        finally:
            timer.cancel()
