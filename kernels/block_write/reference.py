"""Token rows written one by one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moorage.kernels.half import Storage, from_storage, to_storage


def write_rows(kv_layer: Storage, pages: NDArray[np.int32], start: int, k: Storage, v: Storage) -> bool:
    """See cpu.py."""
    block_size, finite = kv_layer.shape[3], True
    for i in range(len(k)):
        page, row = pages[(start + i) // block_size], (start + i) % block_size
        for part, rows in enumerate((k, v)):
            stored = rows[i] if rows.dtype == kv_layer.dtype else to_storage(rows[i], is_half=True)
            kv_layer[page, part, :, row] = stored
            finite = finite and bool(np.isfinite(from_storage(stored)).all())
    return finite
