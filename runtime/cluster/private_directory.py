"""A temporary directory that only this user can enter, and that is removed with its process.

Ray makes its session folder writable for every user; inside such a directory other users can't reach it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

PREFIX = "moorage-ray-"
_LOCK = "lock"
_LONGEST_ROOT = 24
"""Most characters of the path above it. Unix sockets of a Ray session lie inside; their paths have 107 at most."""


class PrivateDirectory:
    """A directory of mode 0700. It holds a lock while its process runs; `remove_leftovers` goes by that."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=_root()))
        scratch = self.path / f".{_LOCK}"
        self._lock = os.open(scratch, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        scratch.rename(self.path / _LOCK)  # Under its final name the lock is always taken.

    def remove(self) -> None:
        """Removes it with all that it holds. Idempotent."""
        shutil.rmtree(self.path, ignore_errors=True)
        with suppress(OSError):
            os.close(self._lock)


def remove_leftovers() -> list[Path]:
    """Removes the directories that killed processes of this user have left, and returns their paths."""
    removed = []
    for path in Path(_root()).glob(f"{PREFIX}*"):
        try:
            if path.is_symlink() or path.stat().st_uid != os.geteuid():
                continue
            lock = os.open(path / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            shutil.rmtree(path, ignore_errors=True)
            removed.append(path)
        finally:
            os.close(lock)
    return removed


def _root() -> str:
    chosen = tempfile.gettempdir()
    return chosen if len(chosen) <= _LONGEST_ROOT else "/tmp"
