"""Host memory through which blocks of another host's store pass on their way to the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from moorage.workers.gpu.transfer.copy_engine import as_storage_array
from moorage.workers.kv.link import Link, gather

Int32 = NDArray[np.int32]


class StagingRing:
    """Two halves in turn: while one is read by the device, the other takes the next blocks."""

    def __init__(self, buffer: torch.Tensor) -> None:
        """`buffer` is [2, n, 2, Hkv, B, D] in storage type, pinned when the device is a GPU."""
        self._halves = buffer
        self._arrays = [as_storage_array(half) for half in buffer]
        self._finish: list[Callable[[], None]] = [_nothing, _nothing]
        self._turn = 0

    def pass_through(
        self, link: Link, session_id: int, layer: int, blocks: Int32
    ) -> Iterator[tuple[slice, torch.Tensor, Callable[[Callable[[], None]], None]]]:
        """(which of `blocks`, their staged copies [n, 2, Hkv, B, D], `busy`) until all have come.

        The caller begins to copy them out and calls `busy` with what waits, on the host, until that is over.
        """
        size = self._halves.shape[1]
        for start in range(0, len(blocks), size):
            part, turn = slice(start, min(start + size, len(blocks))), self._turn
            self._turn = 1 - turn
            self._finish[turn]()
            count = part.stop - part.start
            into = np.arange(count, dtype=np.int32)
            gather(link, session_id, layer, blocks[part], self._arrays[turn], into)

            def busy(finish: Callable[[], None], turn: int = turn) -> None:
                self._finish[turn] = finish

            yield part, self._halves[turn, :count], busy


def _nothing() -> None:
    """A half that nobody reads."""
