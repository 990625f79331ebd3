"""Anchors of sealed blocks: from the keys alone when a block is full, and again when its important keys are known.

Codes of single keys, and centres of these, are written with them.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from moorage.kernels.block_anchors import build_anchors
from moorage.kernels.key_codes import encode_keys
from moorage.workers.kv.arena import Arena
from moorage.workers.kv.messages import AnchorRotation, Float32, Int32, ReadableBlocks, Storage
from moorage.workers.kv.stripes import Stripes
from moorage.workers.spec import AnchorType

BLOCKS_AT_ONCE = 64
"""Bounds the memory of the angles of rotated keys."""
MOST_TURNS = 8
"""Parts of sessions whose angles are kept, since all layers of a chunk need the same."""
_KINDS = {
    AnchorType.BLOCK_MEAN: "mean",
    AnchorType.BLOCK_MAX: "max",
    AnchorType.QUEST: "bounds",
    AnchorType.FIXED: "fixed",
    AnchorType.DYNAMIC: "mean",
    AnchorType.REPR_TOPK: "mean",
}
"""What a block's anchors are made of when it is sealed; important keys follow when they are known."""
Turns = tuple[Float32, Float32]
"""(cos, sin), each [n, B, rotary_dim / 2]."""


class AnchorBuilder:
    """Writes the anchors of one arena. Holds no state of any session, but angles for the next layer."""

    def __init__(self, arena: Arena) -> None:
        self._arena, self._layout = arena, arena.layout
        self._known: OrderedDict[tuple[bytes, bytes], Turns] = OrderedDict()
        """Turns by positions and frequencies."""

    def build(
        self,
        layer: int,
        pages: Int32,
        first: int,
        rotation: AnchorRotation | None,
        importance: Float32 | None = None,
    ) -> None:
        """Builds those of `pages`, which hold the shard's blocks from `first` on, and the codes of keys.

        `rotation` turns keys at their own positions first; `importance` [n, Hkv, B] says how much attention each key
        received.
        """
        for start in range(0, len(pages), BLOCKS_AT_ONCE):
            part = slice(start, min(start + BLOCKS_AT_ONCE, len(pages)))
            turns = (
                None if rotation is None else self._turns(rotation, layer, first + start, first + part.stop)
            )
            some = pages[part]
            found = self._arena.readable(layer, some)
            self._build_part(layer, some, found, turns, None if importance is None else importance[part])

    def build_from(
        self, blocks: Storage, layer: int, pages: Int32, first: int, rotation: AnchorRotation | None
    ) -> None:
        """`build` of at most BLOCKS_AT_ONCE blocks whose rows are `blocks` [n, 2, Hkv, B, D]."""
        turns = None if rotation is None else self._turns(rotation, layer, first, first + len(pages))
        found = ReadableBlocks(blocks, np.arange(len(pages), dtype=np.int32))
        self._build_part(layer, pages, found, turns, None)

    def _build_part(
        self,
        layer: int,
        pages: Int32,
        found: ReadableBlocks,
        turns: Turns | None,
        importance: Float32 | None,
    ) -> None:
        layout, anchors, codes = self._layout, self._arena.anchors[layer], self._arena.codes[layer]
        centres = self._arena.centres[layer]
        in_place = found.pages is pages
        made = anchors if in_place else np.empty((len(pages), *anchors.shape[1:]), anchors.dtype)
        if layout.anchor_type.codes_keys:
            coded, near = (
                kept if in_place else np.empty((len(pages), *kept.shape[1:]), kept.dtype)
                for kept in (codes, centres)
            )
            encode_keys(found.blocks, made, coded, found.pages, turns, near)
            if not in_place:
                codes[pages], centres[pages] = coded, near
        else:
            build_anchors(
                found.blocks,
                made,
                found.pages,
                _KINDS[layout.anchor_type] if importance is None else "important",
                importance=importance,
                num_top=layout.repr_topk if layout.anchor_type is AnchorType.REPR_TOPK else layout.anchor_num,
                rotation=turns,
            )
        if not in_place:
            anchors[pages] = made

    def _turns(self, rotation: AnchorRotation, layer: int, first: int, end: int) -> Turns:
        """(cos, sin), each [n, B, rotary_dim / 2], of the keys of blocks [first, end); angles in fp64."""
        blocks = np.arange(first, end, dtype=np.int32)
        places = Stripes(rotation.num_shards, rotation.stripe_blocks).joined(rotation.shard, blocks)
        positions = places.astype(np.int64)[:, None] * self._layout.block_size + np.arange(
            self._layout.block_size
        )
        shape = self._layout.num_layers, rotation.inv_freq.shape[-1]
        inv_freq = np.broadcast_to(rotation.inv_freq, shape)[layer]
        key = places.tobytes(), inv_freq.tobytes()
        turns = self._known.pop(key, None)
        if turns is None:
            angles = np.multiply.outer(positions, inv_freq)
            turns = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        self._known[key] = turns
        if len(self._known) > MOST_TURNS:
            self._known.popitem(last=False)
        return turns
