"""What a process does first that works on what clients sent: it ends with its parent, and gives way to the server."""

from __future__ import annotations

import ctypes
import os
import signal
from contextlib import suppress
from pathlib import Path

NICE = 10
"""Lower priority than the processes that generate tokens."""
_PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """This process is killed when `parent` ends (Linux)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def die_first() -> None:
    """Where the host's memory runs out, a text is lost and not the KV cache (Linux)."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def be_quiet() -> None:
    """Discards what this process writes when a limit ends it; the server reports that in one line."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
