"""A directory in the temporary one that only this user can enter, and which goes with its process.

Ray makes its session folder writable for everybody; inside such a directory nobody else reaches it.
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
"""Characters of the directory that holds it: Unix sockets of a Ray session lie below, in paths of at most 107."""


class PrivateDirectory:
    """Mode 0700. A lock in it says that its process runs, for whoever clears up after killed ones."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=_root()))
        scratch = self.path / f".{_LOCK}"
        self._lock = os.open(scratch, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        scratch.rename(self.path / _LOCK)  # Whoever finds the lock finds it taken.

    def remove(self) -> None:
        """Removes it with all that it holds. Idempotent."""
        shutil.rmtree(self.path, ignore_errors=True)
        with suppress(OSError):
            os.close(self._lock)


def remove_leftovers() -> list[Path]:
    """Removes the directories of this user's processes that were killed. Returns them."""
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
