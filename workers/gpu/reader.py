"""Brings blocks from the KV actors to the device: into slots for decode, or in pieces for prefill."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from moorage.workers.gpu.timing import PartTimer
from moorage.workers.kv.shards import ShardedKv
from moorage.workers.spec import KvLayout, KvType

Int32 = NDArray[np.int32]


def storage_dtype(kv_type: KvType) -> torch.dtype:
    """The torch type of stored keys and values."""
    return torch.float16 if kv_type is KvType.FP16 else torch.float32


def as_storage_array(blocks: torch.Tensor) -> NDArray[np.uint16] | NDArray[np.float32]:
    """A CPU tensor of stored elements as the KV kernels take it (fp16 as bits); no copy."""
    array = blocks.numpy()
    return array.view(np.uint16) if array.dtype == np.float16 else array


class BlockReader:
    """The slot pool and the staging buffer of one worker, and the ways into them.

    `slots` is [num_slots, 2, Hkv, B, D] in storage type on the device; `staging` is the same shape on the host,
    `piece_blocks` long, pinned when the device is a GPU.
    """

    def __init__(
        self,
        kv: ShardedKv,
        layout: KvLayout,
        num_slots: int,
        piece_blocks: int,
        device: torch.device,
        compute_dtype: torch.dtype,
        timer: PartTimer,
    ) -> None:
        self._kv = kv
        self._layout = layout
        self._timer = timer
        self.compute_dtype = compute_dtype
        self.device = device
        self.piece_blocks = piece_blocks
        block = (2, layout.num_kv_heads, layout.block_size, layout.head_dim)
        dtype = storage_dtype(layout.kv_type)
        self.slots = torch.zeros((num_slots, *block), dtype=dtype, device=device)
        on_gpu = device.type == "cuda"
        self.staging = torch.zeros((piece_blocks, *block), dtype=dtype, pin_memory=on_gpu)
        self._staging_array = as_storage_array(self.staging)
        self._slots_array = None if on_gpu else as_storage_array(self.slots)

    def fetch(self, session_id: int, layer: int, blocks: Int32, slots: Int32) -> None:
        """Reads `blocks` from DRAM into `slots`."""
        if not len(blocks):
            return
        with self._timer("gather"):
            if self._slots_array is not None:
                self._kv.gather(session_id, layer, blocks, self._slots_array, slots)
                return
            for start in range(0, len(blocks), self.piece_blocks):
                part = slice(start, start + self.piece_blocks)
                staged = self.stage(session_id, layer, blocks[part])
                into = torch.from_numpy(slots[part]).to(self.device, torch.long)
                self.slots[into] = staged.to(self.device, non_blocking=True)
                torch.cuda.current_stream(self.device).synchronize()

    def stage(self, session_id: int, layer: int, blocks: Int32) -> torch.Tensor:
        """At most `piece_blocks` blocks in the host's staging buffer: [n, 2, Hkv, B, D] in storage type."""
        into = np.arange(len(blocks), dtype=np.int32)
        self._kv.gather(session_id, layer, blocks, self._staging_array, into)
        return self.staging[: len(blocks)]

    def pieces(
        self, session_id: int, layer: int, blocks: Int32
    ) -> Iterator[tuple[Int32, torch.Tensor, torch.Tensor]]:
        """(blocks, K, V) piece by piece; K, V are [Hkv, n * B, D] on the device in compute type, un-rotated."""
        for start in range(0, len(blocks), self.piece_blocks):
            part = blocks[start : start + self.piece_blocks]
            with self._timer("gather"):
                staged = self.stage(session_id, layer, part)
                keys, values = (self._dense(staged[:, i]) for i in (0, 1))
            yield part, keys, values

    def rows(
        self, session_id: int, layer: int, first_block: int, end_token: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V of tokens [first_block * B, end_token), each [Hkv, n, D] in compute type, un-rotated."""
        size = self._layout.block_size
        blocks = np.arange(first_block, -(-end_token // size), dtype=np.int32)
        parts = [(k, v) for _, k, v in self.pieces(session_id, layer, blocks)]
        count = end_token - first_block * size
        if not parts:
            empty = torch.zeros(
                (self._layout.num_kv_heads, 0, self._layout.head_dim),
                dtype=self.compute_dtype,
                device=self.device,
            )
            return empty, empty
        keys, values = (torch.cat([part[i] for part in parts], dim=1)[:, :count] for i in (0, 1))
        return keys, values

    def _dense(self, blocks: torch.Tensor) -> torch.Tensor:
        # [n, Hkv, B, D] -> [Hkv, n * B, D]; always a copy, since staging is used again for the next piece
        num_blocks, num_heads, size, dim = blocks.shape
        dense = torch.empty((num_heads, num_blocks, size, dim), dtype=self.compute_dtype, device=self.device)
        dense.copy_(blocks.transpose(0, 1), non_blocking=False)
        return dense.view(num_heads, num_blocks * size, dim)

    def write_row(self, slot: int, row: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Writes one token's K and V, each [Hkv, D], into a slot."""
        self.slots[slot, 0, :, row] = key
        self.slots[slot, 1, :, row] = value
