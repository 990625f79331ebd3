"""Writes token rows into pages of the arena, converting float32 to fp16 on the way."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from moorage.kernels.checks import (
    FLOAT32,
    INT32,
    STORAGE,
    all_within,
    check_array,
    check_ids,
    check_range,
    is_typed,
)
from moorage.kernels.compiling import njit
from moorage.kernels.half import NOT_FINITE, Storage, largest, narrow, no_bits, widen
from moorage.kernels.numba_flags import SERIAL, num_workers
from moorage.kernels.thread_team import run_units, team_of, unit_call


def write_rows(kv_layer: Storage, pages: NDArray[np.int32], start: int, k: Storage, v: Storage) -> bool:
    """Writes tokens [start, start + T) of one session and layer; token t goes to row t % B of pages[t // B].

    kv_layer [P, 2, Hkv, B, D]; k, v [T, Hkv, D] in float32 or in the storage type. Returns whether all that was
    stored is finite; numbers beyond the storage type's range are not. Raises ValueError if the rows do not fit.
    """
    k, v = cast(Storage, np.ascontiguousarray(k)), cast(Storage, np.ascontiguousarray(v))
    types = FLOAT32[0], kv_layer.dtype
    known = is_typed(kv_layer, STORAGE, 5) and is_typed(pages, INT32, 1)
    if not (known and is_typed(k, types, 3) and is_typed(v, types, 3)):
        raise _misfit(kv_layer, pages, start, k, v)
    most = _write(team_of(num_workers(2 * k.nbytes)), kv_layer, pages, start, k, v)
    if most < 0:
        raise _misfit(kv_layer, pages, start, k, v)
    return bool(most < NOT_FINITE[kv_layer.dtype])


def _misfit(kv_layer: Storage, pages: NDArray[np.int32], start: int, k: Storage, v: Storage) -> ValueError:
    """Why nothing was written."""
    check_array("kv_layer", kv_layer, STORAGE, (None, 2, None, None, None))
    num_pages, _, num_heads, block_size, dim = kv_layer.shape
    check_array("k", k, (FLOAT32[0], kv_layer.dtype), (None, num_heads, dim))
    check_array("v", v, (FLOAT32[0], kv_layer.dtype), k.shape)
    check_array("pages", pages, INT32, (None,))
    check_range("start", start, 0, len(pages) * block_size - len(k))
    check_ids("pages", pages[start // block_size : (start + len(k) - 1) // block_size + 1], num_pages)
    return ValueError(f"rows {k.shape} do not fit {kv_layer.shape}")


@njit(**SERIAL)
def _write(team: Any, kv_layer: Any, pages: Any, start: Any, k: Any, v: Any) -> Any:
    """The largest bits that were stored, see `largest`; -1, and nothing is written, where the rows do not fit."""
    num_pages, parts, num_heads, block_size, dim = kv_layer.shape
    count = len(k)
    if parts != 2 or k.shape != v.shape or k.shape[1] != num_heads or k.shape[2] != dim:
        return np.int64(-1)
    if not count:
        return np.int64(0)
    if start < 0 or start > len(pages) * block_size - count:
        return np.int64(-1)
    touched = pages[start // block_size : (start + count - 1) // block_size + 1]
    if not all_within(touched, num_pages):
        return np.int64(-1)
    found = np.zeros(len(touched), np.int64)
    run_units(
        team, len(touched), *unit_call(_write_block, (kv_layer, touched, start % block_size, k, v, found))
    )  # fmt: skip
    return found.max()


@njit(**SERIAL)
def _write_block(
    index: Any, kv_layer: Any, pages: Any, offset: Any, k: Any, v: Any, largest_bits: Any
) -> None:  # fmt: skip
    """The rows of the touched block `index`; the first token lies at row `offset` of block 0."""
    page, block_size, dim = pages[index], kv_layer.shape[3], kv_layer.shape[4]
    begin = max(0, index * block_size - offset)
    end = min(len(k), (index + 1) * block_size - offset)
    row = begin + offset - index * block_size
    found = np.int64(0)
    for head in range(k.shape[1]):
        for t in range(end - begin):
            for into, values in ((kv_layer[page, 0], k), (kv_layer[page, 1], v)):
                target, source = into[head, row + t], values[begin + t, head]
                most = no_bits(target[0])
                for d in range(dim):
                    stored = narrow(widen(source[d]), target[d])
                    target[d] = stored
                    most = largest(most, stored)
                found = max(found, np.int64(most))
    largest_bits[index] = found
