"""A coordinator with its stores and its worker in this process, on an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import atexit
import threading
import weakref
from collections.abc import Callable, Coroutine
from functools import partial
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

        async def make() -> Coordinator:
            grammars = grammars_of(self.plan)
            return Coordinator(cluster_of(self.plan, executor, self.plan.step_tokens, grammars=grammars))

        self.coordinator = _result_of(make(), self._loop)
        # Whoever forgets to close gets the memory back when the last reference goes, and a quiet end of the process.
        at_exit = partial(_cancel_all, self._loop, self._thread)
        atexit.register(at_exit)
        self._finalizer = weakref.finalize(self, _end, self.coordinator, self._loop, self._thread, at_exit)
        self._finalizer.atexit = False

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Runs `work` on the loop and waits for it. An interrupt of the caller cancels it.

        Raises Unavailable after `close`.
        """
        if not self._finalizer.alive:
            work.close()
            raise Unavailable("the pipeline is closed; make a new one")
        return _result_of(work, self._loop)

    def close(self) -> None:
        """Ends all requests and gives the memory back. Safe to call twice."""
        self._finalizer()


def _result_of(work: Coroutine[Any, Any, Result], loop: asyncio.AbstractEventLoop) -> Result:
    future = asyncio.run_coroutine_threadsafe(work, loop)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def _end(
    coordinator: Coordinator,
    loop: asyncio.AbstractEventLoop,
    thread: threading.Thread,
    at_exit: Callable[[], None],
) -> None:
    """Closes the coordinator and ends its loop. The loop's own thread, which may collect garbage, does not wait."""
    atexit.unregister(at_exit)
    closing = asyncio.run_coroutine_threadsafe(coordinator.close(), loop)
    closing.add_done_callback(lambda _: loop.call_soon_threadsafe(loop.stop))
    if threading.current_thread() is not thread:
        thread.join()
        closing.result()
        loop.close()


def _cancel_all(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    """Ends a loop when the process ends, where nothing can be given to other threads any longer."""

    async def cancel() -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        if others:
            await asyncio.wait(others, timeout=1)
        loop.stop()

    if not loop.is_closed():
        asyncio.run_coroutine_threadsafe(cancel(), loop)
        thread.join(timeout=2)
