"""Processes that start together and need the same kernels: one compiles them, the others load what it made."""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LONGEST_WAIT_S = 300.0
"""A process compiles for itself after this wait; a first start takes a minute on two cores."""
_LOOK_S = 0.05
_PACKAGE = Path(__file__).resolve().parent


@contextmanager
def one_at_a_time(name: str) -> Iterator[None]:
    """Lets one process of this user and host in at a time for `name`, of those that share a cache of kernels.

    The lock goes with the process that holds it. Where there is no lock to be had, all are let in.
    """
    lock = -1
    try:
        with suppress(OSError):
            lock = os.open(_path(name), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            _take(lock)
        yield
    finally:
        if lock >= 0:
            with suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_UN)
            os.close(lock)


def _path(name: str) -> str:
    """The path of the lock's file. Installations with kernels in different places do not wait for each other."""
    cache = zlib.crc32(f"{_PACKAGE} {os.environ.get('NUMBA_CACHE_DIR')}".encode())
    return os.path.join(tempfile.gettempdir(), f"moorage-{os.getuid()}-{name}-{cache:08x}.lock")


def _take(lock: int) -> None:
    until_s = time.monotonic() + LONGEST_WAIT_S
    while time.monotonic() < until_s:
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(_LOOK_S)
