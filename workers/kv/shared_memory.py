"""A mapping of shared memory that Linux can serve by huge pages.

Looking up where a page lies costs more than reading the few bytes of a selected key. Linux gives shared memory no
huge pages by itself unless its owner says so (`shmem_enabled`), but since 6.1 a process may ask for them for memory
that it has mapped at a suitable address (MADV_COLLAPSE), without any right or setting. Every process that maps the
same memory at such an address then reads it by huge pages.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import time
import weakref

import numpy as np
from numpy.typing import NDArray

HUGE_BYTES = 2 << 20
"""Bytes of a huge page on x86-64 and, with base pages of 4 KiB, on arm64."""
FAST, PATIENCE_S = 1 << 29, 2.0
"""Where Linux must first make room, it gives fewer bytes a second than this, as one page after the other takes.
The time that this costs is limited: so many seconds for each GiB, and for less."""
_COLLAPSE = 25
"""MADV_COLLAPSE of Linux 6.1, which Python's mmap does not name."""
_FIXED, _NONE = 0x10, 0
"""MAP_FIXED and PROT_NONE, which it does not name either."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long
]  # fmt: skip
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_FAILED = ctypes.c_void_p(-1).value


class SharedMapping:
    """All bytes of a file descriptor, at an address that is a multiple of HUGE_BYTES."""

    def __init__(self, fd: int, num_bytes: int) -> None:
        """Raises OSError when the system refuses."""
        self.num_bytes = num_bytes
        self.address = _map(fd, num_bytes)
        memory = (ctypes.c_uint8 * num_bytes).from_address(self.address)
        # Arrays hold `memory`, which is unmapped with the last of them; at exit the system does it.
        weakref.finalize(memory, _libc.munmap, self.address, num_bytes).atexit = False
        self.array: NDArray[np.uint8] = np.frombuffer(memoryview(memory), np.uint8)
        self._is_huge = np.zeros(num_bytes // HUGE_BYTES, np.bool_)
        """Whether each huge page was asked for."""
        self._patience_s = PATIENCE_S * max(1.0, num_bytes / (1 << 30))

    def advise(self, advice: int) -> None:
        """Gives the system an advice of madvise about all bytes. Raises OSError when it refuses."""
        if _libc.madvise(self.address, self.num_bytes, advice) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def ask_huge(self, begin: int, end: int) -> int:
        """Asks for huge pages where most of a page lies in bytes [begin, end); returns how many are new.

        Their memory is taken. Nothing is asked for twice, nor after the system has refused or was too slow.
        """
        first, last = (begin + HUGE_BYTES // 2) // HUGE_BYTES, (end + HUGE_BYTES // 2) // HUGE_BYTES
        wanted = np.flatnonzero(~self._is_huge[first:last]) + first
        count = 0
        for run in np.split(wanted, np.flatnonzero(np.diff(wanted) > 1) + 1) if len(wanted) else ():
            if self._patience_s > 0:
                count += self._collapse(int(run[0]), int(run[-1]) + 1)
        return count

    def _collapse(self, first: int, last: int) -> int:
        start, stop = first * HUGE_BYTES, last * HUGE_BYTES
        begun = time.perf_counter()
        # Linux joins what is there: a byte of each page must have been touched.
        self.array[start:stop:HUGE_BYTES].max()
        self._is_huge[first:last] = True
        refused = _libc.madvise(self.address + start, stop - start, _COLLAPSE) != 0
        self._patience_s -= max(0.0, time.perf_counter() - begun - (stop - start) / FAST)
        if refused:
            self._patience_s = 0.0
        return 0 if refused else last - first


def _map(fd: int, num_bytes: int) -> int:
    """Maps a file descriptor into the first suitable addresses of a reservation, whose ends are given back."""
    room = num_bytes + HUGE_BYTES
    base = _address(_libc.mmap(None, room, _NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0))
    address = -(-base // HUGE_BYTES) * HUGE_BYTES
    end = -(-(address + num_bytes) // mmap.PAGESIZE) * mmap.PAGESIZE
    for low, high in ((base, address), (end, base + room)):
        if high > low:
            _libc.munmap(low, high - low)
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    try:
        return _address(_libc.mmap(address, num_bytes, protection, mmap.MAP_SHARED | _FIXED, fd, 0))
    except OSError:
        _libc.munmap(address, end - address)
        raise


def _address(found: int) -> int:
    if found == _FAILED:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return found


def seal_size(fd: int) -> None:
    """Forbids that a memfd shrinks, so that a mapping of it can never fault on memory taken away."""
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
