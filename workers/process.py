"""What a process knows of itself and does for itself: where it runs, its priority, and its garbage collector."""

from __future__ import annotations

import gc
import os
from contextlib import suppress
from dataclasses import dataclass

NICENESS = "MOORAGE_NICENESS"
"""The environment variable in which a launcher passes its own niceness on."""


@dataclass(frozen=True, slots=True)
class ProcessFacts:
    """A process as others must know it."""

    host_key: str
    """See `host_key`; a pid means something only where this is the same."""
    pid: int
    niceness: int


def host_key() -> str:
    """A text that two processes share if a mailbox can join them: one boot, one network namespace, one user."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot_id = file.read().strip()
    return f"{boot_id}:{os.stat('/proc/self/ns/net').st_ino}:{os.getuid()}"


def own_facts() -> ProcessFacts:
    """The facts of this process."""
    return ProcessFacts(host_key(), os.getpid(), os.getpriority(os.PRIO_PROCESS, 0))


def freeze_heap() -> None:
    """Leaves all present objects out of garbage collection. A process calls it once it has started.

    Modules alone have some 100 000 objects. A full collection looks at each, which takes a tenth of a second, and
    all requests wait for it.
    """
    gc.collect()
    gc.freeze()


def take_asked_priority() -> None:
    """The niceness that NICENESS names, for every thread of this process, where that is permitted.

    Ray starts its workers at 15, behind everything else on the host, unless it is told otherwise when it starts.
    """
    asked = int(os.environ.get(NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))
    for thread in os.listdir("/proc/self/task"):
        with suppress(PermissionError, ProcessLookupError):
            if os.getpriority(os.PRIO_PROCESS, int(thread)) > asked:
                os.setpriority(os.PRIO_PROCESS, int(thread), asked)
