"""Packed blocks brought to a GPU as they are, for attention that expands them in registers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from moorage.workers.gpu.transfer.copy_handle import CopyHandle
from moorage.workers.gpu.transfer.packed_copies import PackedCopies, PackedOperand
from moorage.workers.gpu.transfer.pinning import PinnedBlocks
from moorage.workers.kv.arena import Arena
from moorage.workers.kv.mapped_shard import MappedShard
from moorage.workers.kv.shards import ShardedKv

Int32 = NDArray[np.int32]
Submit = Callable[[Callable[[], None]], CopyHandle]
"""Lets copies begin when their targets are free."""


class PackedReader:
    """Brings packed blocks to the device of a worker that maps every store."""

    def __init__(
        self,
        kv: ShardedKv,
        copies: Callable[[Arena], PackedCopies],
        blocks_of: Callable[[Arena], PinnedBlocks],
        submit: Submit,
    ) -> None:
        """Every store is mapped, and packs its blocks by the same quantizer."""
        self._kv, self._copies, self._blocks_of, self._submit = kv, copies, blocks_of, submit

    def operand(self, layer: int) -> PackedOperand:
        """What a kernel reads the blocks of a layer by."""
        shard = self._kv.links[0].shard
        assert shard is not None
        return self._copies(shard.arena).operand(layer)

    def are_packed(self, session_id: int, layer: int, blocks: Int32) -> NDArray[np.bool_]:
        """Which of written `blocks` a query after them sees as they are packed."""
        found = np.zeros(len(blocks), np.bool_)
        for shard, local, places in self._parts(session_id, blocks):
            assert shard.packed is not None
            found[places] = shard.packed.is_packed(shard.session(session_id), layer, local)
        return found

    def copy(self, session_id: int, layer: int, blocks: Int32, out: torch.Tensor, into: Int32) -> CopyHandle:
        """Begins to copy packed `blocks` into `out[into]`, uint8 [n, block_bytes] on the device."""

        def begin() -> None:
            for shard, local, places in self._parts(session_id, blocks):
                pages, pinned = shard.pages_of(session_id, layer, local), self._blocks_of(shard.arena)
                self._copies(shard.arena).fetch(pinned, layer, pages, out, into[places])

        return self._submit(begin)

    def _parts(self, session_id: int, blocks: Int32) -> list[tuple[MappedShard, Int32, Int32]]:
        parts = self._kv.parts(session_id, blocks)
        return [(link.shard, local, places) for link, local, places in parts if link.shard is not None]
