"""Keeps an actor's threads on the CPUs of one NUMA node, and its memory with them."""

from __future__ import annotations

import os
from collections.abc import Sequence

from moorage.workers.errors import InvalidConfig


def bind_to(cpus: Sequence[int]) -> None:
    """Runs this thread, and every thread that it starts from now on, on `cpus` alone.

    Raises InvalidConfig when none of them is there or allowed.
    """
    try:
        os.sched_setaffinity(0, cpus)
    except (OSError, ValueError) as error:
        allowed = ",".join(map(str, sorted(os.sched_getaffinity(0))))
        raise InvalidConfig(
            f"kv_store.cpus: this process may not run on {','.join(map(str, cpus))} ({error}); allowed are {allowed}"
        ) from error
