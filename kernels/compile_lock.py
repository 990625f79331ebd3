"""Processes that start together and need the same kernels: one compiles them, the others load what it made."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def one_at_a_time(file: str | Path) -> Iterator[None]:
    """Lets one process of this host in at a time for `file`, which must exist and stays as it is.

    The lock goes with the process that holds it. Where a file system knows no locks, all are let in.
    """
    with open(file, encoding="utf-8") as held:
        with suppress(OSError):
            fcntl.flock(held, fcntl.LOCK_EX)
        yield
