"""Packed blocks on their way to a GPU: they cross the link as they are packed, and are expanded to fp16 there.

Long runs are copied by DMA into packed staging on the device, and expanded out of it. Short ones are read by the
kernel that expands them, in the stores' own memory, since every copy call costs the host some microseconds. What a
query sees in fp16, the block that its session's last token is in and the one with the sinks, is not packed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from moorage.kernels.packed_blocks.layout import PackedLayout
from moorage.kernels.triton_support import has_triton, upload
from moorage.workers.gpu.transfer.pinning import PinnedBlocks
from moorage.workers.gpu.transfer.runs import runs_of
from moorage.workers.kv.formats.base import PackedCodec
from moorage.workers.kv.mapped_shard import MappedShard
from moorage.workers.spec import KvLayout

if TYPE_CHECKING:
    from moorage.kernels.packed_blocks.triton import DeviceTables

Int32 = NDArray[np.int32]


class PackedOperand(NamedTuple):
    """What a kernel reads the packed blocks of a layer by."""

    layout: PackedLayout
    tables: DeviceTables


def travels_packed(layout: KvLayout) -> bool:
    """Whether blocks cross a GPU's link packed; without Triton they are expanded before."""
    return layout.is_packed and has_triton()


class PackedCopies:
    """What the packed blocks of all layers are expanded by, on one device, in the order of the current stream."""

    def __init__(
        self, layout: KvLayout, codec: PackedCodec, device: torch.device, staging_blocks: int, dma_bytes: int
    ) -> None:
        """Copies go by DMA if their runs have `dma_bytes` each, `staging_blocks` blocks at a time."""
        from moorage.kernels.packed_blocks.triton import device_tables

        self._device, self._staging_blocks, self._dma_bytes = device, staging_blocks, dma_bytes
        tables = [codec.tables_of(layer) for layer in range(layout.num_layers)]
        there = {id(each): device_tables(each, device) for each in tables}
        self._operands = [
            PackedOperand(codec.layout_of(layer), there[id(each)]) for layer, each in enumerate(tables)
        ]
        self._staging = torch.empty(staging_blocks * layout.block_bytes, dtype=torch.uint8, device=device)

    def operand(self, layer: int) -> PackedOperand:
        """What the blocks of a layer are read by."""
        return self._operands[layer]

    def bring(
        self,
        shard: MappedShard,
        pinned: PinnedBlocks,
        session_id: int,
        layer: int,
        blocks: Int32,
        out: torch.Tensor,
        into: Int32,
    ) -> NDArray[np.bool_]:
        """Begins to expand written `blocks` into `out[into]`, [S, 2, Hkv, B, D]; returns which of them these are.

        The others are not packed as a query sees them, and are left to the caller.
        """
        assert shard.packed is not None
        is_packed = shard.packed.is_packed(shard.session(session_id), layer, blocks)
        pages, slots = shard.pages_of(session_id, layer, blocks[is_packed]), into[is_packed]
        for start in range(0, len(pages), self._staging_blocks):
            part = slice(start, start + self._staging_blocks)
            self._expand(pinned, layer, pages[part], out, slots[part])
        return is_packed

    def fetch(self, pinned: PinnedBlocks, layer: int, pages: Int32, out: torch.Tensor, places: Int32) -> None:
        """Begins to copy `pages` of a layer into `out[places]`, uint8 [n, bytes of a block], as they are."""
        from moorage.kernels.block_gather.triton import gather_pieces

        if self._copied_by_dma(pinned, layer, pages, out, places):
            return
        stored, there = pinned.blocks[layer], upload((pages, places), self._device)
        gather_pieces(stored[:, None, None, None], there[0], out[:, None, None, None], there[1])

    def _copied_by_dma(
        self, pinned: PinnedBlocks, layer: int, pages: Int32, out: torch.Tensor, places: Int32
    ) -> bool:
        """Begins what `fetch` does if the runs of pages are long enough for copies; returns whether they are."""
        stored, runs = pinned.blocks[layer], runs_of(pages, places)
        if len(pages) * stored.shape[1] < len(runs) * self._dma_bytes:
            return False
        for page, place, count in runs:
            source, target = stored[page : page + count], out[place : place + count].view(-1)
            for begin, end in pinned.parts(source):
                target[begin:end].copy_(source.view(-1)[begin:end], non_blocking=True)
        return True

    def _expand(
        self, pinned: PinnedBlocks, layer: int, pages: Int32, out: torch.Tensor, slots: Int32
    ) -> None:
        from moorage.kernels.packed_gather.triton import expand_blocks

        stored, places = pinned.blocks[layer], np.arange(len(pages), dtype=np.int32)
        block_bytes = stored.shape[1]
        staged = self._staging[: len(pages) * block_bytes].view(-1, block_bytes)
        if self._copied_by_dma(pinned, layer, pages, staged, places):
            stored, pages = staged, places
        pages_there, slots_there = upload((pages, slots), self._device)
        expand_blocks(*self._operands[layer], stored, pages_there, out, slots_there)
