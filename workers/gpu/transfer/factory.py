"""Which copy engine suits a device."""

from __future__ import annotations

import torch

from moorage.workers.gpu.transfer.copy_engine import CopyEngine, DirectCopyEngine
from moorage.workers.kv.shards import ShardedKv
from moorage.workers.spec import KvLayout


def copy_engine(
    kv: ShardedKv, layout: KvLayout, device: torch.device, piece_blocks: int, dma_bytes: int | None = None
) -> CopyEngine:
    """The one that suits the device; `dma_bytes` as EngineSettings has it."""
    if device.type != "cuda":
        return DirectCopyEngine(kv)
    from moorage.workers.gpu.transfer.cuda_copies import CudaCopies

    return CudaCopies.make(kv, layout, device, piece_blocks, dma_bytes)
