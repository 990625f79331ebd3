"""A process that compiles a worker's kernels beside it: Numba compiles on one core of a process at a time.

Both use all kernels, the worker from the first to the last and this process from the last to the first, and keep what
they compile in the same cache. So neither compiles what the other has done; at the kernel where they meet, one waits.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

if TYPE_CHECKING:
    from moorage.workers.gpu.engine.kernel_uses import KernelNeeds

LOADING_S = 3.0
"""Time after which kernels are not loaded but compiled."""


@contextmanager
def compiling_process(needs: KernelNeeds) -> Iterator[None]:
    """A process that compiles what `needs` asks for, if the block takes long; it ends with the block."""
    if len(os.sched_getaffinity(0)) < 2:
        yield
        return
    helper = _Helper(TypeAdapter(type(needs)).dump_json(needs).decode())
    timer = threading.Timer(LOADING_S, helper.start)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        helper.end()


class _Helper:
    """The process, which is started by a thread of its own."""

    def __init__(self, needs: str) -> None:
        self._needs = needs
        self._lock = threading.Lock()
        self._has_ended = False
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it, unless it is not wanted any more."""
        command = [sys.executable, "-m", __name__, self._needs]
        with self._lock:
            if not self._has_ended:
                self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)

    def end(self) -> None:
        """Ends it, whatever it is compiling."""
        with self._lock:
            self._has_ended = True
            if self._process is not None:
                self._process.kill()
                self._process.communicate()


def _end_with_parent() -> None:
    """Waits for the end of the process that holds the other end of the standard input."""
    sys.stdin.buffer.read()
    os._exit(0)


def _compile_from_the_end(needs: str) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from moorage.workers.gpu.engine.kernel_uses import KernelNeeds, kernel_uses

    for use in reversed(kernel_uses(TypeAdapter(KernelNeeds).validate_json(needs))):
        use()


if __name__ == "__main__":
    _compile_from_the_end(sys.argv[1])
