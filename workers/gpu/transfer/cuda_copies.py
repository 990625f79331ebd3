"""Copies to a GPU on a stream of their own, straight out of the stores' memory where this host maps it.

The arena is registered as pinned, so the device reads it without a detour: large pieces by DMA, which takes no
processor of the GPU; small ones by a kernel that reads host memory itself, since every copy call costs the host some
microseconds. Which are small is measured at the start. Packed blocks are expanded on the device, which needs
Triton. What is not read where it lies lands in a pinned ring first: blocks of another host, rows in fp16 beside
packed blocks, and all blocks of a packed format without Triton.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from moorage.kernels.triton_support import has_triton, upload
from moorage.workers.gpu.transfer.block_loader import storage_dtype
from moorage.workers.gpu.transfer.copy_handle import CopyHandle
from moorage.workers.gpu.transfer.dma_threshold import measure_threshold
from moorage.workers.gpu.transfer.packed_copies import PackedCopies, travels_packed
from moorage.workers.gpu.transfer.packed_reader import PackedReader
from moorage.workers.gpu.transfer.pinning import CudaHostMemory, Pinned, PinnedBlocks
from moorage.workers.gpu.transfer.runs import runs_of
from moorage.workers.gpu.transfer.staging_ring import StagingRing
from moorage.workers.kv.arena import Arena
from moorage.workers.kv.link import Link
from moorage.workers.kv.mapped_shard import MappedShard
from moorage.workers.kv.shards import ShardedKv
from moorage.workers.spec import KvLayout

Int32 = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class OnStream:
    """Copies that an event follows on their stream."""

    event: torch.cuda.Event
    pending: bool = True

    def wait(self) -> None:
        """The current stream waits; the host does not."""
        torch.cuda.current_stream().wait_event(self.event)


class CudaCopies:
    """See CopyEngine."""

    overlaps = True

    def __init__(
        self, kv: ShardedKv, device: torch.device, staging: torch.Tensor, dma_bytes: int | None = None
    ) -> None:
        """`staging` is pinned, [2, n, 2, Hkv, B, D] in storage type.

        Pieces of at least `dma_bytes` go by DMA; None measures from which size on it pays.
        """
        self._kv, self._device, self.link_bytes = kv, device, 0
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._ring = StagingRing(staging)
        if not has_triton():
            dma_bytes = 0
        self._dma_bytes = measure_threshold(staging[0], device) if dma_bytes is None else dma_bytes
        self._pinned: dict[int, PinnedBlocks] = {}
        self._staging_blocks, self._layer_bytes = staging.shape[1], kv.layout.layer_bytes
        self._packed: PackedCopies | None = None
        self.packed: PackedReader | None = None
        if travels_packed(kv.layout) and all(link.shard is not None for link in kv.links):
            self.packed = PackedReader(kv, self._packed_of, self._blocks_of, self._submit)

    @classmethod
    def make(
        cls,
        kv: ShardedKv,
        layout: KvLayout,
        device: torch.device,
        staging_blocks: int,
        dma_bytes: int | None = None,
    ) -> CudaCopies:
        """Copies with a staging ring of two times `staging_blocks`."""
        shape = (2, staging_blocks, 2, layout.num_kv_heads, layout.block_size, layout.head_dim)
        dtype = storage_dtype(layout.kv_type)
        return cls(kv, device, torch.empty(shape, dtype=dtype, pin_memory=True), dma_bytes)

    def prepare(self, pinned: Pinned | None = None) -> None:
        """See CopyEngine."""
        for link in self._kv.links:
            if link.shard is not None and _is_read_by_device(link.shard):
                self._blocks_of(link.shard.arena, pinned)
                if link.shard.packed is not None:
                    self._packed_of(link.shard.arena)

    def copy(self, session_id: int, layer: int, blocks: Int32, out: torch.Tensor, into: Int32) -> CopyHandle:
        """See CopyEngine."""

        def begin() -> None:
            for link, local, places in self._kv.parts(session_id, blocks):
                shard, slots = link.shard, into[places]
                if shard is not None and _is_read_by_device(shard):
                    pinned = self._blocks_of(shard.arena)
                    if shard.packed is None:
                        self._from_arena(pinned, layer, shard.pages_of(session_id, layer, local), out, slots)
                        continue
                    packed = self._packed_of(shard.arena)
                    done = packed.bring(shard, pinned, session_id, layer, local, out, slots)
                    self.link_bytes += int(done.sum()) * self._layer_bytes[layer]
                    local, slots = local[~done], slots[~done]
                self._from_elsewhere(link, session_id, layer, local, out, slots)

        return self._submit(begin)

    def _submit(self, begin: Callable[[], None]) -> CopyHandle:
        # The targets may still be read by what was launched before.
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            begin()
        return OnStream(self._record())

    def _from_arena(
        self, pinned: PinnedBlocks, layer: int, pages: Int32, out: torch.Tensor, into: Int32
    ) -> None:
        stored = pinned.blocks[layer]
        block_bytes = stored[0].numel() * stored.element_size()
        self.link_bytes += len(pages) * block_bytes
        runs = list(pinned.runs(layer, pages, into))
        if len(pages) * block_bytes >= len(runs) * self._dma_bytes:
            for page, slot, count in runs:
                out[slot : slot + count].copy_(stored[page : page + count], non_blocking=True)
            return
        from moorage.kernels.block_gather.triton import gather_pieces

        pages_there, slots_there = upload((pages, into), self._device)
        gather_pieces(stored, pages_there, out, slots_there)

    def _from_elsewhere(
        self, link: Link, session_id: int, layer: int, blocks: Int32, out: torch.Tensor, into: Int32
    ) -> None:
        self.link_bytes += len(blocks) * self._kv.layout.slot_bytes
        for part, staged, busy in self._ring.pass_through(link, session_id, layer, blocks):
            for row, slot, count in runs_of(np.arange(len(staged), dtype=np.int32), into[part]):
                out[slot : slot + count].copy_(staged[row : row + count], non_blocking=True)
            busy(self._record().synchronize)

    def _record(self) -> torch.cuda.Event:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return event

    def _blocks_of(self, arena: Arena, pinned: Pinned | None = None) -> PinnedBlocks:
        """The arena's blocks as memory that the device may read; pins them at the first call.

        Raises ResourceExhausted where the system refuses to pin them.
        """
        known = self._pinned.get(id(arena))
        if known is None:
            known = self._pinned[id(arena)] = PinnedBlocks(arena, CudaHostMemory(), pinned)
        return known

    def _packed_of(self, arena: Arena) -> PackedCopies:
        """What expands packed blocks; those of all arenas have the same quantizer."""
        if self._packed is None:
            assert arena.codec is not None
            self._packed = PackedCopies(
                arena.layout, arena.codec, self._device, self._staging_blocks, self._dma_bytes
            )
        return self._packed

    def close(self) -> None:
        """See CopyEngine."""
        torch.cuda.synchronize(self._device)
        for pinned in reversed(self._pinned.values()):
            pinned.close()
        self._pinned.clear()
        self.packed = None  # which refers to this object


def _is_read_by_device(shard: MappedShard) -> bool:
    """Whether the device itself reads a store's blocks where they lie; a kernel expands packed ones."""
    return shard.is_readable or travels_packed(shard.layout)
