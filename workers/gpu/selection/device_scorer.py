"""Anchors on the device as well: a generated token's selection without a way to the host and back.

The stores go on making the anchors. Their copies here are brought up to date when a layer asks for more sealed
blocks than it has, which is once in `block_size` tokens, or when the stores made anchors anew.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from moorage.kernels.block_score.tensors import score_tensors
from moorage.workers.gpu.transfer.block_loader import storage_dtype
from moorage.workers.kv.operations import Stats
from moorage.workers.kv.shards import ShardedKv
from moorage.workers.spec import AnchorPool, HeadPool, KvLayout, MemorySpec, Preselect

Int32 = NDArray[np.int32]


@dataclass(slots=True)
class Mirror:
    """One session's anchors."""

    anchors: torch.Tensor
    """[L, blocks, Hkv, A, D] in storage type."""
    num_blocks: list[int]
    """The number of first blocks, by layer, whose anchors are those of the stores."""


class DeviceScorer:
    """Scores, pools and selects on the device, for the sessions whose anchors have room there."""

    def __init__(self, kv: ShardedKv, layout: KvLayout, device: torch.device, room_bytes: int | None) -> None:
        """`room_bytes` bounds the memory of all mirrors; None leaves it to the device."""
        self._kv, self._layout, self._device = kv, layout, device
        self._room_bytes = room_bytes
        self._mirrors: dict[int, Mirror] = {}
        self._dtype = storage_dtype(layout.kv_type)

    def open(self, session_id: int, num_blocks: int, memory: MemorySpec) -> None:
        """Makes room for a session's anchors, if it can be scored here and there is any."""
        layout = self._layout
        shape = (layout.num_layers, num_blocks, layout.num_kv_heads, layout.anchor_vectors, layout.head_dim)
        size = num_blocks * layout.page_anchor_bytes
        if not memory.selection.topk or memory.selection.preselect is not Preselect.OFF:
            return
        if self._room_bytes is not None and size > self._room_bytes:
            return
        try:
            with torch.inference_mode(False):
                anchors = torch.zeros(shape, dtype=self._dtype, device=self._device)
        except torch.OutOfMemoryError:
            return
        if self._room_bytes is not None:
            self._room_bytes -= size
        self._mirrors[session_id] = Mirror(anchors, [0] * layout.num_layers)

    def drop(self, session_id: int) -> None:
        """Gives a session's room back. Idempotent."""
        mirror = self._mirrors.pop(session_id, None)
        if mirror is not None and self._room_bytes is not None:
            self._room_bytes += mirror.anchors.nbytes

    def invalidate(self, session_id: int, layer: int, first: int) -> None:
        """The stores made the anchors of blocks from `first` on anew."""
        mirror = self._mirrors.get(session_id)
        if mirror is not None:
            mirror.num_blocks[layer] = min(mirror.num_blocks[layer], first)

    def holds(self, session_id: int) -> bool:
        """Whether a session is scored here."""
        return session_id in self._mirrors

    def select(
        self,
        session_id: int,
        layer: int,
        query: torch.Tensor,
        *,
        first: int,
        limit: int,
        memory: MemorySpec,
        scale: float,
    ) -> Int32 | None:
        """Ids [S, k], ascending, of the best of the sealed blocks [first, limit), more than k, for `query` [Hq, D].

        As `ShardedKv.select` for one row. None where anchors of the session lie on another host; it is then dropped.
        """
        mirror, layout = self._mirrors[session_id], self._layout
        if limit > mirror.num_blocks[layer] and not self._update(session_id, mirror, layer, limit):
            self.drop(session_id)
            return None
        pages = torch.arange(first, limit, dtype=torch.int32, device=self._device)
        queries, add = query.float()[None], memory.selection.anchor_pool is AnchorPool.SUM
        quest = layout.anchor_type.bounds
        logits = scale * score_tensors(mirror.anchors[layer], pages, queries, quest, add=add)[0]
        num_selections = memory.selection.head_select_mode.num_selections(len(query), layout.num_kv_heads)
        pooled = _pool(logits, num_selections, memory.selection.head_pool)
        ids = pooled.topk(memory.selection.topk or 0, dim=1, sorted=False).indices.sort(dim=1).values + first
        return ids.to(torch.int32).cpu().numpy()

    def _update(self, session_id: int, mirror: Mirror, layer: int, limit: int) -> bool:
        """Copies the anchors of blocks that were sealed since; False where they are out of reach."""
        known = mirror.num_blocks[layer]
        blocks = np.arange(known, limit, dtype=np.int32)
        for link, local, places in self._kv.parts(session_id, blocks):
            if link.shard is None:
                return False
            link.call(Stats())  # an answer means that the commits before it, which seal blocks, are done
            pages = link.shard.pages_of(session_id, layer, local)
            stored = link.shard.arena.anchors[layer][pages]
            fresh = torch.from_numpy(stored.view(np.float16) if stored.dtype == np.uint16 else stored)
            into = torch.from_numpy(blocks[places]).to(self._device, torch.long)
            mirror.anchors[layer, into] = fresh.to(self._device)
        mirror.num_blocks[layer] = limit
        return True


def _pool(logits: torch.Tensor, num_selections: int, pooling: HeadPool) -> torch.Tensor:
    """[S, n] of scaled logits [Hq, n]; see `kernels.pool_scores`."""
    groups = logits.view(num_selections, -1, logits.shape[1])
    if pooling is HeadPool.MAX:
        return groups.amax(dim=1)
    if pooling is HeadPool.SOFTMAX:
        groups = torch.softmax(groups, dim=2)
    return groups.mean(dim=1)
