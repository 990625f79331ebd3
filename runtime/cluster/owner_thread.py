"""A thread that makes calls for an event loop, and lasts as long as the process.

Ray lets its processes be killed when the thread that started them ends, so that one must not be a pool's.
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
    """One call after the other. It is a daemon: a call that never returns does not keep the process from ending."""

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def call(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Starts a call; what it returns or raises comes with the future. Cancelling that does not end the call."""
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
