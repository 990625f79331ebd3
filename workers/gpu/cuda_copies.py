"""Copies to a GPU on a stream of their own, straight out of the stores' memory where this host maps it.

The arena is registered as pinned, so the device reads it without a detour: large pieces by DMA, which takes no
processor of the GPU; small ones by a kernel that reads host memory itself, since every copy call costs the host some
microseconds. Which are small is measured at the start. Blocks of another host land in a pinned ring first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from moorage.kernels.triton_support import has_triton, upload
from moorage.workers.errors import ResourceExhausted
from moorage.workers.gpu.copy_engine import Copies
from moorage.workers.gpu.dma_threshold import measure_threshold
from moorage.workers.gpu.runs import runs_of
from moorage.workers.gpu.staging_ring import StagingRing
from moorage.workers.kv.arena import Arena
from moorage.workers.kv.link import Link
from moorage.workers.kv.shards import ShardedKv
from moorage.workers.spec import KvLayout, KvType

Int32 = NDArray[np.int32]

_PORTABLE, _MAPPED = 1, 2
"""cudaHostRegister's flags: pinned for every context, and readable by kernels."""


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
        self._kv, self._device = kv, device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._ring = StagingRing(staging)
        if not has_triton():
            dma_bytes = 0
        self._dma_bytes = measure_threshold(staging[0], device) if dma_bytes is None else dma_bytes
        self._registered: dict[int, tuple[Arena, torch.Tensor]] = {}

    @classmethod
    def make(
        cls,
        kv: ShardedKv,
        layout: KvLayout,
        device: torch.device,
        staging_blocks: int,
        dma_bytes: int | None = None,
    ) -> CudaCopies:
        """With a staging ring of two times `staging_blocks`."""
        shape = (2, staging_blocks, 2, layout.num_kv_heads, layout.block_size, layout.head_dim)
        dtype = torch.float16 if layout.kv_type is KvType.FP16 else torch.float32
        return cls(kv, device, torch.empty(shape, dtype=dtype, pin_memory=True), dma_bytes)

    def copy(self, session_id: int, layer: int, blocks: Int32, out: torch.Tensor, into: Int32) -> Copies:
        """See CopyEngine."""
        # Slots may still be read by what was launched before.
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            for link, local, places in self._kv.parts(blocks):
                found = link.locate(session_id, layer, local)
                if found is None:
                    self._from_elsewhere(link, session_id, layer, local, out, into[places])
                else:
                    arena, pages = found
                    self._from_arena(self._pinned(arena)[layer], pages, out, into[places])
        return OnStream(self._record())

    def _from_arena(self, stored: torch.Tensor, pages: Int32, out: torch.Tensor, into: Int32) -> None:
        """stored [P, 2, Hkv, B, D] in pinned memory."""
        block_bytes = stored[0].numel() * stored.element_size()
        runs = runs_of(pages, into)
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
        for part, staged, busy in self._ring.pass_through(link, session_id, layer, blocks):
            for row, slot, count in runs_of(np.arange(len(staged), dtype=np.int32), into[part]):
                out[slot : slot + count].copy_(staged[row : row + count], non_blocking=True)
            busy(self._record().synchronize)

    def _record(self) -> torch.cuda.Event:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return event

    def _pinned(self, arena: Arena) -> torch.Tensor:
        """The arena's blocks [L, P, 2, Hkv, B, D] as memory that the device may read.

        Raises ResourceExhausted where the system refuses to pin them.
        """
        known = self._registered.get(id(arena))
        if known is not None:
            return known[1]
        kv = arena.kv.view(np.float16) if arena.layout.kv_type is KvType.FP16 else arena.kv
        tensor = torch.from_numpy(kv)
        error = int(_runtime().cudaHostRegister(tensor.data_ptr(), tensor.nbytes, _PORTABLE | _MAPPED))
        if error != 0:
            raise ResourceExhausted(
                f"KV arena: cudaHostRegister of {tensor.nbytes} bytes failed with error {error}; raise "
                "the limit of locked memory (ulimit -l) or lower kv_store.dram"
            )
        self._registered[id(arena)] = (arena, tensor)
        return tensor

    def close(self) -> None:
        """See CopyEngine."""
        torch.cuda.synchronize(self._device)
        for _, tensor in self._registered.values():
            _runtime().cudaHostUnregister(tensor.data_ptr())
        self._registered.clear()


def _runtime() -> Any:
    """The CUDA runtime library."""
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]
