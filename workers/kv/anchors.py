"""Anchors of sealed blocks: from the keys alone when a block is full, and again when its important keys are known."""

from __future__ import annotations

import numpy as np

from moorage.kernels.block_anchors import build_anchors
from moorage.workers.kv.arena import Arena
from moorage.workers.kv.messages import AnchorRotation, Float32, Int32
from moorage.workers.kv.stripes import Stripes
from moorage.workers.spec import AnchorType

BLOCKS_AT_ONCE = 64
"""Bounds the memory of the angles of rotated keys."""
_KINDS = {
    AnchorType.BLOCK_MEAN: "mean",
    AnchorType.BLOCK_MAX: "max",
    AnchorType.QUEST: "bounds",
    AnchorType.QUEST_HADAMARD: "hadamard bounds",
    AnchorType.FIXED: "fixed",
    AnchorType.DYNAMIC: "mean",
    AnchorType.REPR_TOPK: "mean",
}
"""What a block's anchors are made of when it is sealed; important keys follow when they are known."""


class AnchorBuilder:
    """Writes the anchors of one arena. Holds no state of any session."""

    def __init__(self, arena: Arena) -> None:
        self._arena, self._layout = arena, arena.layout

    def build(
        self,
        layer: int,
        pages: Int32,
        first: int,
        rotation: AnchorRotation | None,
        importance: Float32 | None = None,
    ) -> None:
        """Builds those of `pages`, which hold the shard's blocks from `first` on.

        `rotation` turns keys at their own positions first; `importance` [n, Hkv, B] says how much attention each key
        received.
        """
        layout = self._layout
        ranked = layout.repr_topk if layout.anchor_type is AnchorType.REPR_TOPK else layout.anchor_num
        for start in range(0, len(pages), BLOCKS_AT_ONCE):
            part = slice(start, min(start + BLOCKS_AT_ONCE, len(pages)))
            wanted, anchors = pages[part], self._arena.anchors[layer]
            found = self._arena.readable(layer, wanted)
            in_place = found.pages is wanted
            made = anchors if in_place else np.empty((len(wanted), *anchors.shape[1:]), anchors.dtype)
            build_anchors(
                found.blocks,
                made,
                found.pages,
                _KINDS[layout.anchor_type] if importance is None else "important",
                importance=None if importance is None else importance[part],
                num_top=ranked,
                rotation=None
                if rotation is None
                else self._turns(rotation, layer, first + start, first + part.stop),
            )
            if not in_place:
                anchors[wanted] = made

    def _turns(self, rotation: AnchorRotation, layer: int, first: int, end: int) -> tuple[Float32, Float32]:
        """(cos, sin), each [n, B, rotary_dim / 2], of the keys of blocks [first, end); angles in fp64."""
        blocks = np.arange(first, end, dtype=np.int32)
        places = Stripes(rotation.num_shards, rotation.stripe_blocks).joined(rotation.shard, blocks)
        positions = places.astype(np.int64)[:, None] * self._layout.block_size + np.arange(
            self._layout.block_size
        )
        shape = self._layout.num_layers, rotation.inv_freq.shape[-1]
        angles = np.multiply.outer(positions, np.broadcast_to(rotation.inv_freq, shape)[layer])
        return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
