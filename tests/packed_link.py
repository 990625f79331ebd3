"""The copies of a GPU over packed blocks, with the CPU as the device: its kernels run in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from moorage.workers.gpu.transfer.copy_engine import as_storage_array
from moorage.workers.gpu.transfer.copy_handle import DONE, CopyHandle
from moorage.workers.gpu.transfer.packed_copies import PackedCopies
from moorage.workers.gpu.transfer.packed_reader import PackedReader
from moorage.workers.gpu.transfer.pinning import PinnedBlocks
from moorage.workers.kv.arena import Arena
from moorage.workers.kv.link import gather
from moorage.workers.kv.shards import ShardedKv
from tests.unpinned_memory import CountingMemory

Int32 = NDArray[np.int32]


class InterpretedPackedCopies:
    """What `CudaCopies` does with packed blocks, without its stream: they are expanded at once."""

    overlaps = True

    def __init__(self, kv: ShardedKv, device: torch.device, dma_bytes: int, staging_blocks: int = 3) -> None:
        self._kv, self._device, self.link_bytes = kv, device, 0
        self.num_expanded, self.num_streamed = 0, 0
        self._sizes = staging_blocks, dma_bytes
        self._pinned: dict[int, PinnedBlocks] = {}
        self._packed: PackedCopies | None = None
        self.packed = PackedReader(
            kv, lambda arena: self._of(arena)[0], lambda arena: self._of(arena)[1], self._at_once
        )

    def prepare(self, pinned: Callable[[int, int], None] | None = None) -> None:
        """Nothing to do."""

    def copy(self, session_id: int, layer: int, blocks: Int32, out: torch.Tensor, into: Int32) -> CopyHandle:
        layout = self._kv.layout
        for link, local, places in self._kv.parts(session_id, blocks):
            slots, rest = into[places], np.ones(len(local), np.bool_)
            if link.shard is not None:
                packed, pinned = self._of(link.shard.arena)
                rest = ~packed.bring(link.shard, pinned, session_id, layer, local, out, slots)
            gather(link, session_id, layer, local[rest], as_storage_array(out), slots[rest])
            self.num_expanded += int((~rest).sum())
            self.link_bytes += (
                int(rest.sum()) * layout.slot_bytes + int((~rest).sum()) * layout.layer_bytes[layer]
            )
        return DONE

    def _of(self, arena: Arena) -> tuple[PackedCopies, PinnedBlocks]:
        if self._packed is None:
            assert arena.codec is not None
            self._packed = PackedCopies(self._kv.layout, arena.codec, self._device, *self._sizes)
        if id(arena) not in self._pinned:
            self._pinned[id(arena)] = PinnedBlocks(arena, CountingMemory())
        return self._packed, self._pinned[id(arena)]

    def _at_once(self, begin: Callable[[], None]) -> CopyHandle:
        self.num_streamed += 1
        begin()
        return DONE

    def close(self) -> None:
        for pinned in self._pinned.values():
            pinned.close()
        self._pinned.clear()
