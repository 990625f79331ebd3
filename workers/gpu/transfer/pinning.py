"""The KV arena as pinned memory: registered with CUDA in slices, before the first request.

One registration of 512 GiB or more fails on recent drivers, and some kernels of Linux allow 2 GB at once. So an arena
is registered in slices. A copy may not cross the border of two registrations; `PinnedBlocks.runs` cuts them there.
Pinning takes about a tenth of a second for each GB.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from moorage.workers.errors import ResourceExhausted
from moorage.workers.gpu.transfer.runs import runs_of
from moorage.workers.kv.arena import Arena

Int32 = NDArray[np.int32]
Pinned = Callable[[int, int], None]
"""A call that is told (bytes pinned, bytes of the arena) after each slice."""

SLICE_BYTES = 1 << 30
PAGE_BYTES = 4096
_PORTABLE, _MAPPED = 1, 2
"""cudaHostRegister's flags: pinned for every context, and readable by kernels."""


class HostMemory(Protocol):
    """The calls of a device's runtime that pin host memory."""

    def register(self, address: int, num_bytes: int) -> int:
        """Pins memory. Returns 0, or the number of the error."""

    def unregister(self, address: int) -> int:
        """Undoes the registration that began at `address`. Returns 0, or the number of the error."""

    def clear_error(self) -> None:
        """Forgets the last error, which the next kernel launch would report as its own."""


class CudaHostMemory:
    """The CUDA runtime."""

    def register(self, address: int, num_bytes: int) -> int:
        """See HostMemory."""
        return int(_runtime().cudaHostRegister(address, num_bytes, _PORTABLE | _MAPPED))

    def unregister(self, address: int) -> int:
        """See HostMemory."""
        return int(_runtime().cudaHostUnregister(address))

    def clear_error(self) -> None:
        """See HostMemory. torch has no call for it, so the runtime that torch has loaded is asked."""
        version = str(torch.version.cuda).partition(".")[0]
        with suppress(OSError):
            ctypes.CDLL(f"libcudart.so.{version}").cudaGetLastError()


class PinnedBlocks:
    """The blocks of one arena, pinned as long as this object is open."""

    def __init__(
        self,
        arena: Arena,
        memory: HostMemory,
        pinned: Pinned | None = None,
        slice_bytes: int = SLICE_BYTES,
    ) -> None:
        """Pins slices of about `slice_bytes`.

        Raises ResourceExhausted where the system refuses. Nothing stays pinned then.
        """
        self._arena, self._memory = arena, memory
        """The arena is kept, since its mapping must outlive the registration."""
        self.blocks: tuple[torch.Tensor, ...]
        """By layer [P, 2, Hkv, B, D] in storage type, or the bytes of packed blocks [P, bytes of a block]."""
        self._slice_blocks = _slice_blocks(arena.layout.block_bytes, slice_bytes)
        self._step = self._slice_blocks * arena.layout.block_bytes
        if arena.codec is None:
            self.blocks = torch.from_numpy(arena.kv.view(arena.layout.element)).unbind()
        else:
            # Layers may have blocks of different sizes, whose borders are no borders of memory pages.
            self.blocks = tuple(torch.from_numpy(layer) for layer in arena.stored)
            self._step = max(PAGE_BYTES, slice_bytes // PAGE_BYTES * PAGE_BYTES)
        self._start, self._size = self.blocks[0].data_ptr(), sum(layer.nbytes for layer in self.blocks)
        self._registered: list[int] = []
        for start in range(0, self._size, self._step):
            self._pin(self._start + start, min(self._step, self._size - start))
            if pinned is not None:
                pinned(min(start + self._step, self._size), self._size)

    def _pin(self, address: int, num_bytes: int) -> None:
        error = self._memory.register(address, num_bytes)
        if error == 0:
            self._registered.append(address)
            return
        self._memory.clear_error()
        self.close()
        raise ResourceExhausted(
            f"KV arena: cudaHostRegister failed with error {error} after {address - self._start} of "
            f"{self._size} bytes; raise the limit of locked memory (ulimit -l) or lower kv_store.dram"
        )

    def runs(self, layer: int, pages: Int32, into: Int32) -> Iterator[tuple[int, int, int]]:
        """(first page, first target, count) of the longest copies of unpacked `pages` of a layer into `into`."""
        first = layer * self._arena.num_pages
        for page, target, count in runs_of(pages, into):
            while count:
                to_border = self._slice_blocks - (first + page) % self._slice_blocks
                part = min(count, to_border)
                yield page, target, part
                page, target, count = page + part, target + part, count - part

    def parts(self, packed: torch.Tensor) -> Iterator[tuple[int, int]]:
        """(begin, end) in bytes of the longest copies of neighbouring packed blocks, a view of those of a layer."""
        at = packed.data_ptr() - self._start
        border = at // self._step * self._step
        for begin in range(border, at + packed.nbytes, self._step):
            yield max(begin, at) - at, min(begin + self._step - at, packed.nbytes)

    def close(self) -> None:
        """Unpins in reverse order. Idempotent."""
        while self._registered:
            if self._memory.unregister(self._registered.pop()) != 0:
                self._memory.clear_error()


def _slice_blocks(block_bytes: int, slice_bytes: int) -> int:
    """Blocks of one slice, so that its borders are borders of memory pages as well."""
    unit = PAGE_BYTES // math.gcd(block_bytes, PAGE_BYTES)
    return max(1, slice_bytes // (unit * block_bytes)) * unit


def _runtime() -> Any:
    """The CUDA runtime library."""
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]
