"""What a session has selected, for later steps that attend it again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int32 = NDArray[np.int32]


@dataclass(slots=True)
class SelectionRecord:
    """Blocks selected in one layer, and when."""

    ids: Int32
    """[S, k] with S = 1 (shared) or one row for each KV head."""
    decode_step: int
    near_block: int
    """First near block at that step; blocks that left the window since are attended as well."""


@dataclass(slots=True)
class LayerSelections:
    """What one session has selected in all layers, where a compiled call selects; views of the call's arrays."""

    ids: Int32
    """[L, S, k], padded at the end with -1."""
    window_first: Int32
    """[L]: the first window block when the selection was made; everything from there on is attended as well."""
    made_at: NDArray[np.int64]
    """[L]: the decode step of the selection; -1 without one."""
