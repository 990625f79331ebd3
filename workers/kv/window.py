"""The shared memory between one worker and one mailbox server, through which arrays pass."""

from __future__ import annotations

import fcntl
import math
import mmap
import os
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moorage.workers.errors import InvalidRequest
from moorage.workers.kv.shared_memory import seal_size

_ALIGNMENT_BYTES = 64
_FIRST_BYTES = 1 << 20
_MAX_VIEWS = 64


class Window:
    """A memfd that both ends map. Either makes it larger when needed; it never shrinks."""

    def __init__(self, fd: int) -> None:
        """Takes over `fd`. Raises InvalidRequest unless it is a memfd that can't shrink."""
        self.fd = fd
        try:
            sealed = fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
        except OSError:
            sealed = 0
        if not sealed:
            raise InvalidRequest(
                "mailbox window: not a memfd sealed against shrinking; connect with MailboxLink"
            )
        self._map(os.fstat(fd).st_size)

    @classmethod
    def create(cls) -> Window:
        """A new window."""
        fd = os.memfd_create("moorage-window", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, _FIRST_BYTES)
        seal_size(fd)
        return cls(fd)

    def _map(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self._memory = mmap.mmap(self.fd, num_bytes)
        self._views: dict[tuple[str, int, tuple[int, ...]], NDArray[Any]] = {}

    def grow(self, num_bytes: int) -> None:
        """Makes it at least `num_bytes` long; what it held stays."""
        if num_bytes > self.num_bytes:
            rounded = 1 << (num_bytes - 1).bit_length()
            os.ftruncate(self.fd, rounded)
            self._map(rounded)

    def follow(self, num_bytes: int) -> None:
        """Maps what the other end has grown to. Raises InvalidRequest when the window is smaller."""
        if num_bytes > self.num_bytes:
            held = os.fstat(self.fd).st_size
            if num_bytes > held:
                raise InvalidRequest(f"mailbox window: {num_bytes} bytes asked, it has {held}; grow it first")
            self._map(held)

    def view(self, code: str, offset: int, shape: tuple[int, ...]) -> NDArray[Any]:
        """The array of numpy's type `code` at `offset`: a view, valid until the window is written again."""
        # Decode steps ask for the same few views again and again; making one costs more than finding it.
        key = (code, offset, shape)
        view = self._views.get(key)
        if view is None:
            dtype = np.dtype(code)
            self._check(offset, math.prod(shape) * dtype.itemsize if min(shape, default=0) >= 0 else -1)
            if len(self._views) >= _MAX_VIEWS:
                self._views.clear()
            view = self._views[key] = np.ndarray(shape, dtype, self._memory, offset)
        return view

    def put_bytes(self, offset: int, data: bytes) -> None:
        """Writes `data` at `offset`. Raises IndexError or ValueError where the window is too small."""
        self._memory[offset : offset + len(data)] = data

    def get_bytes(self, offset: int, count: int) -> bytes:
        """The bytes [offset, offset + count), or as many of them as the window has."""
        return self._memory[offset : offset + count]

    def _check(self, offset: int, count: int) -> None:
        if offset < 0 or count < 0 or offset + count > self.num_bytes:
            raise InvalidRequest(
                f"mailbox window: {count} bytes at {offset} are outside its {self.num_bytes}; "
                "use one version on both sides"
            )

    def close(self) -> None:
        """Closes the descriptor and the mapping. Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            self._views.clear()
            with suppress(BufferError):  # A view is alive somewhere; the mapping goes with it.
                self._memory.close()


def aligned(num_bytes: int) -> int:
    """Bytes rounded up so that the next array is aligned."""
    return -(-num_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
