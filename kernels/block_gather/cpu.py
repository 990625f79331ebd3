"""Copies blocks out of the arena, each as one piece of memory.

The processor's own prefetcher stops at a page's end and needs some lines to start again, which small blocks at random
places pay for all the time: what comes next is asked for ahead of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moorage.kernels.checks import INT32, STORAGE, all_within, check_array, check_ids, is_typed
from moorage.kernels.compiling import njit
from moorage.kernels.half import Storage
from moorage.kernels.numba_flags import SERIAL, num_workers
from moorage.kernels.simd import LINE_BYTES, copy, prefetch
from moorage.kernels.thread_team import run_units, team_of, unit_call, units_for

PIECE_BYTES = 4096
"""Copied between two lots of prefetching."""
AHEAD_BYTES = 8 * 1024
"""How far ahead blocks are asked for: memory latency times the bandwidth of one core, and some more."""
LARGE_BYTES = 64 * 1024
"""Blocks from this size on are left to the processor's prefetcher."""


def gather_blocks(
    kv_layer: Storage, pages: NDArray[np.int32], out: Storage, slots: NDArray[np.int32]
) -> None:
    """Copies kv_layer[pages[i]] into out[slots[i]]; slots must differ from each other.

    kv_layer [P, 2, Hkv, B, D]; out [S, 2, Hkv, B, D] of the same type; pages, slots [n].
    """
    types = (kv_layer.dtype,)
    team = team_of(num_workers(len(pages) * kv_layer.strides[0]))
    known = is_typed(kv_layer, STORAGE, 5) and is_typed(out, types, 5)
    if (
        not known
        or not (is_typed(pages, INT32, 1) and is_typed(slots, INT32, 1))
        or not _gather(team, units_for(team, len(pages)), kv_layer, pages, out, slots)
    ):
        raise _misfit(kv_layer, pages, out, slots)


def _misfit(
    kv_layer: Storage, pages: NDArray[np.int32], out: Storage, slots: NDArray[np.int32]
) -> ValueError:
    """Why nothing was copied."""
    check_array("kv_layer", kv_layer, STORAGE, (None, 2, None, None, None))
    check_array("out", out, (kv_layer.dtype,), (None, *kv_layer.shape[1:]))
    check_ids("pages", pages, len(kv_layer))
    check_ids("slots", slots, len(out))
    return ValueError(f"slots: {len(slots)} for {len(pages)} pages; expected as many")


@njit(**SERIAL)
def _gather(team: Any, units: Any, kv_layer: Any, pages: Any, out: Any, slots: Any) -> Any:
    """False, and nothing is copied, where ids or shapes do not fit."""
    count, block, item = len(pages), 1, kv_layer.itemsize
    for axis in range(1, 5):
        block *= kv_layer.shape[axis]
        if kv_layer.shape[axis] != out.shape[axis]:
            return False
    if count != len(slots) or kv_layer.shape[1] != 2:
        return False
    if not (all_within(pages, len(kv_layer)) and all_within(slots, len(out))):
        return False
    stored, into = kv_layer.reshape(-1), out.reshape(-1)
    piece, ahead = PIECE_BYTES // item, AHEAD_BYTES // item
    if block * item >= LARGE_BYTES:
        piece, ahead = block, 0
    plan = block, piece, ahead, LINE_BYTES // item
    run_units(team, units, *unit_call(_gather_share, (units, stored, pages, into, slots, plan)))
    return True


@njit(**SERIAL)
def _gather_share(
    unit: Any, units: Any, stored: Any, pages: Any, out: Any, slots: Any, plan: Any
) -> None:  # fmt: skip
    block, piece, ahead, line = plan
    end = len(pages) * (unit + 1) // units
    for i in range(len(pages) * unit // units, end):
        source, into = np.int64(pages[i]) * block, np.int64(slots[i]) * block
        for at in range(0, block, piece):
            size = min(piece, block - at)
            if ahead:
                later, coming = divmod(at + ahead, block)
                if i + later < end:
                    first = np.int64(pages[i + later]) * block + coming
                    for d in range(0, size, line):
                        prefetch(stored, first + d)
            copy(out, into + at, stored, source + at, size)
