"""Blocks copied one by one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moorage.kernels.half import Storage


def gather_blocks(
    kv_layer: Storage, pages: NDArray[np.int32], out: Storage, slots: NDArray[np.int32]
) -> None:
    """See cpu.py."""
    for page, slot in zip(pages, slots, strict=True):
        out[slot] = kv_layer[page]
