"""The workers behind the coordinator, as one: the plan of a step goes in, its result comes out.

The coordinator and the step loop know of the processes only what `Executor` says. `LocalExecutor` runs everything in
this process; the executor of a cluster, over Ray, is made where its processes are started.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol, Self

from moorage.runtime.serving.health import ClusterHealth
from moorage.runtime.serving.status_records import KvActorStatus
from moorage.workers.gpu.settings import WorkerSettings
from moorage.workers.spec import StepPlan, StepResult

if TYPE_CHECKING:
    from moorage.workers.gpu.worker import GpuWorker
    from moorage.workers.kv.store import KvStore


class Executor(Protocol):
    """Runs steps, one at a time, on one worker or several."""

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """Processes of the workers."""

    @property
    def attention_dtype(self) -> str:
        """The type in which workers attend prompts, such as bfloat16."""

    @property
    def health(self) -> ClusterHealth:
        """Problems of the processes, as they are found."""

    async def execute(self, plan: StepPlan) -> StepResult:
        """One forward pass. Raises Unavailable when a worker or a KV actor is gone.

        After any other error the worker has dropped the sessions of the step and goes on: ResourceExhausted when
        memory does not suffice, Internal with the worker's traceback for the unexpected.
        """

    async def kv_actors(self) -> tuple[KvActorStatus, ...]:
        """What each KV actor holds, now or as it was last known."""

    async def close(self) -> None:
        """Ends every process that was started for the workers. Safe to call twice."""


class LocalExecutor:
    """Stores and one worker in this process, for tests and measurements. A step blocks the event loop."""

    def __init__(self, worker: GpuWorker, stores: Sequence[KvStore]) -> None:
        self.worker, self.stores = worker, tuple(stores)
        self.health = ClusterHealth()

    @classmethod
    def start(
        cls,
        settings: WorkerSettings,
        pages_per_actor: Sequence[int],
        progress: Callable[[int, int], None] | None = None,
    ) -> Self:
        """Loads the model and allocates a store for each entry of `pages_per_actor`.

        `progress` is called with the bytes of the weights that are read, and all.
        """
        from moorage.workers.gpu.worker import GpuWorker
        from moorage.workers.kv.link import LocalLink
        from moorage.workers.kv.store import KvStore

        stores = [KvStore(settings.layout, num_pages, settings.quantizer) for num_pages in pages_per_actor]
        try:
            worker = GpuWorker(settings, [partial(LocalLink, store) for store in stores], progress=progress)
        except BaseException:
            for store in stores:
                store.close()
            raise
        return cls(worker, stores)

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """See Executor."""
        return (os.getpid(),)

    @property
    def attention_dtype(self) -> str:
        """See Executor."""
        return self.worker.attention_dtype()

    def step(self, plan: StepPlan) -> StepResult:
        """One forward pass, for callers without an event loop; see `Engine.step` of the worker."""
        return self.worker.step(plan)

    async def execute(self, plan: StepPlan) -> StepResult:
        """See Executor."""
        await asyncio.sleep(0)  # Between two steps other tasks of the loop run.
        return self.step(plan)

    async def kv_actors(self) -> tuple[KvActorStatus, ...]:
        """See Executor."""
        stats = [store.stats() for store in self.stores]
        return tuple(
            KvActorStatus(f"kv-{i}", os.getpid(), one.used_bytes, one.capacity_bytes, one.num_sessions)
            for i, one in enumerate(stats)
        )

    async def close(self) -> None:
        """See Executor."""
        self.release()

    def release(self) -> None:
        """Frees the device memory and the stores, for callers without an event loop. Safe to call twice."""
        self.worker.close()
        for store in self.stores:
            store.close()
