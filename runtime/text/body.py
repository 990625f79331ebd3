"""Bytes that grow outside the heap: an anonymous file in memory, given back in full when it is closed."""

from __future__ import annotations

import mmap
import os
from typing import Self


class Body:
    """What a client sent, or what it will get. Another process reads it through its descriptor, without a copy."""

    def __init__(self, data: bytes = b"") -> None:
        self.fd = os.memfd_create("moorage-text", os.MFD_CLOEXEC)
        self.num_bytes = 0
        self.append(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def append(self, data: bytes) -> None:
        """Adds `data` at the end."""
        left = memoryview(data)
        while left:
            left = left[os.write(self.fd, left) :]
        self.num_bytes += len(data)

    def close(self) -> None:
        """Gives the memory back, once no other process has it open. Safe to call twice."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def read_all(fd: int) -> bytes:
    """A copy of everything in a file."""
    size = os.fstat(fd).st_size
    if not size:
        return b""
    with mmap.mmap(fd, size, prot=mmap.PROT_READ) as view:
        return view[:]


def overwrite(fd: int, data: bytes) -> None:
    """Makes `data` the whole content of a file."""
    os.ftruncate(fd, 0)
    os.lseek(fd, 0, os.SEEK_SET)
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]
