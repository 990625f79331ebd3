"""Blocks that one generated token attends: sinks and window always, and those that a layer selects."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moorage.workers.gpu.positions.attention_blocks import AttentionBlocks
from moorage.workers.gpu.positions.rotary import BlockRanges, RotaryCache

Int32 = NDArray[np.int32]


@dataclass(slots=True)
class StepBlocks:
    """The blocks that a query of one step attends; those not selected are the same in all layers."""

    ranges: BlockRanges
    window: AttentionBlocks
    blocks: AttentionBlocks
    """Sinks, then the window."""
    _clamped: dict[int, AttentionBlocks] = field(default_factory=dict)
    """By number of selected blocks, under clamped positions only, where every distant block is seen alike: entries
    whose distant ids are put in by layer, then `blocks`."""

    @classmethod
    def of(cls, ranges: BlockRanges, rotary: RotaryCache, num_selected: int) -> StepBlocks:
        """The blocks for the query of `ranges`, which will probably attend `num_selected` blocks beside."""
        if rotary.clamped and num_selected:
            known = rotary.clamped_blocks(ranges, num_selected)
            blocks = known.after(num_selected)
            return cls(ranges, blocks.after(ranges.num_sinks), blocks, {num_selected: known})
        sinks = rotary.distant_blocks(ranges, ranges.sinks)
        blocks = sinks.joined(rotary.window_blocks(ranges))
        return cls(ranges, blocks.after(ranges.num_sinks), blocks)

    def with_selected(self, rotary: RotaryCache, selected: Int32) -> AttentionBlocks:
        """The `selected` ids, possibly padded at their end with -1, then `blocks`."""
        ids = selected if not selected.size or selected[-1] >= 0 else selected[selected >= 0]
        if not len(ids):
            return self.blocks
        if not rotary.clamped:
            return rotary.distant_blocks(self.ranges, ids).joined(self.blocks)
        known = self._clamped.get(len(ids))
        if known is None:
            known = self._clamped[len(ids)] = rotary.clamped_blocks(self.ranges, len(ids))
        return known.with_blocks(np.concatenate((ids, self.blocks.blocks)))
