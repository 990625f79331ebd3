"""How blocks travel from the stores to the device: at once on a CPU, on a stream of their own on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from moorage.workers.gpu.transfer.copy_handle import DONE, CopyHandle
from moorage.workers.gpu.transfer.packed_reader import PackedReader
from moorage.workers.kv.shards import ShardedKv

Int32 = NDArray[np.int32]


class CopyEngine(Protocol):
    """Brings blocks into memory of the device."""

    @property
    def packed(self) -> PackedReader | None:
        """What brings packed blocks to the device as they are; None where they do not travel so."""

    @property
    def link_bytes(self) -> int:
        """Bytes that all copies so far have moved to the device: of packed blocks as they travel."""

    @property
    def overlaps(self) -> bool:
        """Whether copies go on beside computation, so that it pays to put work between `copy` and `wait`."""

    def prepare(self, pinned: Callable[[int, int], None] | None = None) -> None:
        """Makes the stores' memory ready for copies, so that the first request does not wait for it.

        `pinned` is told (bytes ready, bytes in all) of each arena from time to time. Raises ResourceExhausted where
        the system refuses.
        """

    def copy(self, session_id: int, layer: int, blocks: Int32, out: torch.Tensor, into: Int32) -> CopyHandle:
        """Begins to copy `blocks` into `out[into]`, [S, 2, Hkv, B, D] in storage type on the device.

        What was asked of the device before may still read the targets: it is not disturbed.
        """

    def close(self) -> None:
        """Lets go of the stores' memory, which must still be mapped. Idempotent."""


def as_storage_array(blocks: torch.Tensor) -> NDArray[np.uint16] | NDArray[np.float32]:
    """A CPU tensor of stored elements as the KV kernels take it (fp16 as bits); no copy."""
    array = blocks.numpy()
    return array.view(np.uint16) if array.dtype == np.float16 else array


class DirectCopyEngine:
    """Copies on a CPU, where store and device share one memory: the calling thread copies at once."""

    overlaps = False
    packed = None

    def __init__(self, kv: ShardedKv) -> None:
        self._kv, self.link_bytes = kv, 0

    def prepare(self, pinned: Callable[[int, int], None] | None = None) -> None:
        """Nothing to do."""

    def copy(self, session_id: int, layer: int, blocks: Int32, out: torch.Tensor, into: Int32) -> CopyHandle:
        """See CopyEngine."""
        self.link_bytes += len(blocks) * self._kv.layout.slot_bytes
        self._kv.gather(session_id, layer, blocks, as_storage_array(out), into)
        return DONE

    def close(self) -> None:
        """It holds nothing."""
