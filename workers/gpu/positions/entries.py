"""Which rows of which blocks one query attends, and how each is seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]


class Entries(NamedTuple):
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
    """Row of `Rotations.bases`; 0, the turn of position 0, where keys are used as stored, and where the angles of
    clamped entries are given."""

    @classmethod
    def of(cls, parts: Sequence[Entries]) -> Entries:
        """All entries of `parts`, at least one, in their order."""
        if len(parts) == 1:
            return parts[0]
        return cls(*map(np.concatenate, zip(*parts, strict=True)))

    def joined(self, other: Entries) -> Entries:
        """These entries, then the others."""
        return Entries.of((self, other))

    def only(self, chosen: NDArray[np.bool_]) -> Entries:
        """Those of the entries."""
        return Entries._make(array[chosen] for array in self)

    def after(self, count: int) -> Entries:
        """All but the first `count`, which lie in the same memory."""
        return Entries._make(array[count:] for array in self)

    def with_blocks(self, blocks: Int32) -> Entries:
        """The same rows and rotations of other blocks, as many."""
        return self._replace(blocks=blocks)
