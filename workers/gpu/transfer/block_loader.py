"""Brings blocks from the KV actors to the device: into slots for decode, or in pieces for prefill."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from moorage.workers.gpu.engine.timing import PartTimer
from moorage.workers.gpu.transfer.copy_engine import CopyEngine
from moorage.workers.gpu.transfer.copy_handle import DONE, CopyHandle
from moorage.workers.kv.formats import format_of
from moorage.workers.spec import KvLayout, KvType

Int32 = NDArray[np.int32]
Copy = Callable[[int, int, Int32, torch.Tensor, Int32], CopyHandle]
"""(session, layer, blocks, out, into): begins to copy blocks into out[into]."""


def storage_dtype(kv_type: KvType) -> torch.dtype:
    """The torch type of keys and values as blocks are decoded."""
    dtype: torch.dtype = getattr(torch, format_of(kv_type).element)
    return dtype


class BlockLoader:
    """The slot pool and the buffers of streamed pieces of one worker, and the ways into them.

    `slots` is [num_slots, 2, Hkv, B, D] in storage type on the device; the two piece buffers are of the same shape,
    `piece_blocks` long, so that one fills while the other is read.
    """

    def __init__(
        self,
        copies: CopyEngine,
        layout: KvLayout,
        num_slots: int,
        piece_blocks: int,
        device: torch.device,
        compute_dtype: torch.dtype,
        timer: PartTimer,
    ) -> None:
        self.copies = copies
        self._layout = layout
        self._timer = timer
        self.compute_dtype = compute_dtype
        self.device = device
        self.piece_blocks = piece_blocks
        self._block = (2, layout.num_kv_heads, layout.block_size, layout.head_dim)
        self._dtype = storage_dtype(layout.kv_type)
        self.slots = self._blocks(num_slots)
        self._pieces = tuple(self._blocks(piece_blocks) for _ in range(2))
        self.packed = copies.packed
        """What brings packed blocks to the device as they are; None where they come decoded."""
        self._under_way: CopyHandle = DONE
        self._layer_bytes = layout.layer_bytes

    def resize(self, num_slots: int) -> None:
        """Takes another number of slots, all empty; whoever held some must ask for them anew."""
        self.slots = self.slots[:0].clone()
        self.slots = self._blocks(num_slots)

    def _blocks(self, count: int) -> torch.Tensor:
        # In the middle of a step as well, they must be ordinary tensors that other threads may write.
        with torch.inference_mode(False):
            return torch.zeros((count, *self._block), dtype=self._dtype, device=self.device)

    @property
    def overlaps(self) -> bool:
        """Whether copies go on beside computation."""
        return self.copies.overlaps

    def fetch(self, session_id: int, layer: int, blocks: Int32, slots: Int32) -> CopyHandle:
        """Begins to read `blocks` from DRAM into `slots`, which hold anything until the copies are waited for."""
        if not len(blocks):
            return DONE
        with self._timer("gather"):
            return self._copy(session_id, layer, blocks, self.slots, slots)

    def stream(self, session_id: int, layer: int, blocks: Int32) -> Iterator[tuple[Int32, torch.Tensor]]:
        """(blocks, [n, 2, Hkv, B, D] in storage type on the device) piece by piece.

        The next piece travels while the caller works on one; what it got is overwritten after its next but one.
        """
        yield from self._streamed(session_id, layer, blocks, self._copy, self._pieces)

    def stream_packed(
        self, session_id: int, layer: int, blocks: Int32
    ) -> Iterator[tuple[Int32, torch.Tensor]]:
        """`stream` of packed blocks as they are: uint8 [n, bytes], which lie in the memory of the pieces."""
        size = self._layer_bytes[layer]
        pieces = [
            piece.view(torch.uint8).view(-1)[: len(piece) * size].view(-1, size) for piece in self._pieces
        ]
        yield from self._streamed(session_id, layer, blocks, self._copy_packed, pieces)

    def _streamed(
        self, session_id: int, layer: int, blocks: Int32, copy: Copy, pieces: Sequence[torch.Tensor]
    ) -> Iterator[tuple[Int32, torch.Tensor]]:
        parts = [
            blocks[start : start + self.piece_blocks] for start in range(0, len(blocks), self.piece_blocks)
        ]
        for number, part in enumerate(parts):
            if number == 0:
                self._begin(session_id, layer, part, copy, pieces[0])
            with self._timer("gather"):
                self._under_way.wait()
            if number + 1 < len(parts):
                self._begin(session_id, layer, parts[number + 1], copy, pieces[(number + 1) % 2])
            yield part, pieces[number % 2][: len(part)]

    def _begin(self, session_id: int, layer: int, part: Int32, copy: Copy, piece: torch.Tensor) -> None:
        with self._timer("gather"):
            # A stream that its reader gave up may have left copies behind.
            self._under_way.wait()
            into = np.arange(len(part), dtype=np.int32)
            self._under_way = copy(session_id, layer, part, piece, into)

    def _copy(self, session_id: int, layer: int, blocks: Int32, out: torch.Tensor, into: Int32) -> CopyHandle:
        before = self.copies.link_bytes
        handle = self.copies.copy(session_id, layer, blocks, out, into)
        self._timer.link_bytes += self.copies.link_bytes - before
        return handle

    def _copy_packed(
        self, session_id: int, layer: int, blocks: Int32, out: torch.Tensor, into: Int32
    ) -> CopyHandle:
        assert self.packed is not None
        self._timer.link_bytes += len(blocks) * self._layer_bytes[layer]
        return self.packed.copy(session_id, layer, blocks, out, into)

    def pieces(
        self, session_id: int, layer: int, blocks: Int32
    ) -> Iterator[tuple[Int32, torch.Tensor, torch.Tensor]]:
        """(blocks, K, V) piece by piece; K, V are [Hkv, n * B, D] on the device in compute type, un-rotated."""
        for part, stored in self.stream(session_id, layer, blocks):
            with self._timer("gather"):
                keys, values = (self._dense(stored[:, i]) for i in (0, 1))
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

    def keys_of(self, slots: Int32) -> torch.Tensor:
        """K [Hkv, n * B, D] of blocks that lie in `slots`, in compute type, un-rotated."""
        return self._dense(self.slots[torch.from_numpy(slots).to(self.device, torch.long), 0])

    def _dense(self, blocks: torch.Tensor) -> torch.Tensor:
        # [n, Hkv, B, D] -> [Hkv, n * B, D]; always a copy, since the buffer is used again
        num_blocks, num_heads, size, dim = blocks.shape
        dense = torch.empty((num_heads, num_blocks, size, dim), dtype=self.compute_dtype, device=self.device)
        dense.copy_(blocks.transpose(0, 1))
        return dense.view(num_heads, num_blocks * size, dim)

    def write_row(self, slot: int, row: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Writes one token's K and V, each [Hkv, D], into a slot."""
        self.slots[slot, 0, :, row] = key
        self.slots[slot, 1, :, row] = value
