"""Which rows of which blocks one query attends, and how each is seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]


class AttentionBlocks(NamedTuple):
    """Rows of blocks that one query attends, as `kernels.block_attention` takes them; n entries."""

    blocks: Int32
    begin: Int32
    end: Int32
    angle_cos: Float32
    """[n, rotary_dim / 2]; [n, 0] where a device multiplies the turns of `variant` and `base` itself."""
    angle_sin: Float32
    rotate_keys: NDArray[np.uint8]
    variant: Int32
    base: Int32
    """Row of `RotaryCache.bases`; 0, the turn of position 0, where keys are used as stored, and where the angles of
    clamped entries are given."""

    @classmethod
    def of(cls, parts: Sequence[AttentionBlocks]) -> AttentionBlocks:
        """All entries of `parts`, at least one, in their order."""
        if len(parts) == 1:
            return parts[0]
        return cls(*map(np.concatenate, zip(*parts, strict=True)))

    def joined(self, other: AttentionBlocks) -> AttentionBlocks:
        """These entries, then the others."""
        return AttentionBlocks.of((self, other))

    def only(self, selected: NDArray[np.bool_]) -> AttentionBlocks:
        """The `selected` entries."""
        return AttentionBlocks._make(array[selected] for array in self)

    def after(self, count: int) -> AttentionBlocks:
        """All but the first `count`, which lie in the same memory."""
        return AttentionBlocks._make(array[count:] for array in self)

    def with_blocks(self, blocks: Int32) -> AttentionBlocks:
        """The same rows and rotations of other blocks, as many."""
        return self._replace(blocks=blocks)
