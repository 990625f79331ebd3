"""Python threads for compiled work: kernels let go of the interpreter's lock, so nothing more must be compiled.

Who finishes first does not wait for a thread that has not begun, as the end of an OpenMP region does: where other
processes have the cores, work is then as fast as on one thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache


def run_by_threads(share: Callable[[], object], workers: int) -> None:
    """Calls `share` in this thread, and in up to `workers` - 1 others meanwhile; returns when all have returned.

    Each call must take pieces of the work until none is left, since others may never begin. Raises what one raised.
    """
    others = [_pool().submit(share) for _ in range(1, workers)]
    try:
        share()
    finally:
        begun = [other for other in others if not other.cancel()]
        wait(begun)  # nobody may write on when this has failed
    for other in begun:
        other.result()


def run_each(run: Callable[[int], object], count: int, workers: int) -> None:
    """run(0) to run(count - 1), by some workers."""
    numbers = iter(range(count))

    def share() -> None:
        for number in numbers:
            run(number)

    run_by_threads(share, min(workers, count))


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="kernel")
