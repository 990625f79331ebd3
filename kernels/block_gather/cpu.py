"""Copies blocks out of the arena, each as one piece of memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from moorage.kernels.checks import STORAGE, check_array, check_ids
from moorage.kernels.half import Storage
from moorage.kernels.numba_flags import PARALLEL, SERIAL, num_workers
from moorage.kernels.simd import copy


def gather_blocks(
    kv_layer: Storage, pages: NDArray[np.int32], out: Storage, slots: NDArray[np.int32]
) -> None:
    """Copies kv_layer[pages[i]] into out[slots[i]]; slots must differ from each other.

    kv_layer [P, 2, Hkv, B, D]; out [S, 2, Hkv, B, D] of the same type; pages, slots [n].
    """
    check_array("kv_layer", kv_layer, STORAGE, (None, 2, None, None, None))
    check_array("out", out, (kv_layer.dtype,), (None, *kv_layer.shape[1:]))
    check_ids("pages", pages, len(kv_layer))
    check_ids("slots", slots, len(out))
    if len(pages) != len(slots):
        raise ValueError(f"slots: {len(slots)} for {len(pages)} pages; expected as many")
    if not len(pages):
        return
    block = kv_layer[0].size
    if num_workers(len(pages) * block * kv_layer.itemsize) > 1:
        _gather_parallel(kv_layer.reshape(-1), pages, out.reshape(-1), slots, block)
    else:
        _gather_serial(kv_layer.reshape(-1), pages, out.reshape(-1), slots, block)


@njit(**SERIAL)
def _gather_serial(stored: Any, pages: Any, out: Any, slots: Any, block: Any) -> None:
    for i in range(len(pages)):
        copy(out, np.int64(slots[i]) * block, stored, np.int64(pages[i]) * block, block)


@njit(**PARALLEL)
def _gather_parallel(stored: Any, pages: Any, out: Any, slots: Any, block: Any) -> None:
    for i in prange(len(pages)):
        copy(out, np.int64(slots[i]) * block, stored, np.int64(pages[i]) * block, block)
