"""A coordinator with its stores and its worker in this process, on an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from moorage.runtime.cluster.bringup import cluster_of, grammars_of
from moorage.runtime.config.schema import ClusterConfig
from moorage.runtime.planning.launch_plan import LaunchPlan, plan_launch
from moorage.runtime.planning.worker_settings import worker_settings
from moorage.runtime.serving.coordinator import Coordinator
from moorage.runtime.serving.executor import LocalExecutor
from moorage.workers.errors import Unavailable

Result = TypeVar("Result")


class LocalCoordinator:
    """Schedules requests as a cluster does, several at once. Its methods may be called by any thread."""

    def __init__(self, config: ClusterConfig) -> None:
        """Loads the model and reserves `kv_store.dram`. Raises InvalidConfig or InvalidModel as a launch does."""
        self.plan: LaunchPlan = plan_launch(config)
        pages = [self.plan.pages_per_actor] * config.kv_store.actors
        executor = LocalExecutor.start(worker_settings(config, self.plan.deployment), pages)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="moorage-steps", daemon=True)
        self._thread.start()
        self._closed = False

        async def make() -> Coordinator:
            grammars = grammars_of(self.plan)
            return Coordinator(cluster_of(self.plan, executor, self.plan.step_tokens, grammars=grammars))

        self.coordinator = self.run(make())

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Runs `work` on the loop and waits for it. An interrupt of the caller cancels it.

        Raises Unavailable after `close`.
        """
        if self._closed:
            work.close()
            raise Unavailable("the pipeline is closed; make a new one")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Ends all requests and gives the memory back. Safe to call twice."""
        if self._closed:
            return
        self.run(self.coordinator.close())
        self._closed = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
