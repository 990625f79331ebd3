"""A thread that runs blocking calls for an event loop, and lasts as long as the process.

Linux kills Ray's processes when the thread that started them ends. A thread of a pool may end at any time.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class OwnerThread:
    """Runs one call after the other. It is a daemon thread, so a call that never returns lets the process end."""

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def call(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Queues a call. The future gets its result or its error; to cancel the future does not end the call."""
        future: Future[T] = Future()
        self._calls.put((future, work))
        return asyncio.wrap_future(future)

    def _run(self) -> None:
        while True:
            future, work = self._calls.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001  whoever waits for the call raises it
                future.set_exception(error)
