"""Writes token rows into pages of the arena, converting float32 to fp16 on the way."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from moorage.kernels.checks import STORAGE, check_array, check_ids, check_range
from moorage.kernels.half import Storage, narrow, widen
from moorage.kernels.numba_flags import PARALLEL, SERIAL, num_workers


def write_rows(kv_layer: Storage, pages: NDArray[np.int32], start: int, k: Storage, v: Storage) -> None:
    """Writes tokens [start, start + T) of one session and layer; token t goes to row t % B of pages[t // B].

    kv_layer [P, 2, Hkv, B, D]; k, v [T, Hkv, D] in float32 or in the storage type. Raises ValueError if the rows
    do not fit the pages.
    """
    check_array("kv_layer", kv_layer, STORAGE, (None, 2, None, None, None))
    num_pages, _, num_heads, block_size, dim = kv_layer.shape
    types = (np.dtype(np.float32), kv_layer.dtype)
    k, v = cast(Storage, np.ascontiguousarray(k)), cast(Storage, np.ascontiguousarray(v))
    check_array("k", k, types, (None, num_heads, dim))
    check_array("v", v, types, k.shape)
    if not len(k):
        return
    first, last = start // block_size, (start + len(k) - 1) // block_size
    check_range("start", start, 0, len(pages) * block_size - len(k))
    touched = pages[first : last + 1]
    check_ids("pages", touched, num_pages)
    if num_workers(2 * k.nbytes) > 1:
        _write_parallel(kv_layer, touched, start % block_size, k, v)
    else:
        _write_serial(kv_layer, touched, start % block_size, k, v)


@njit(**SERIAL)
def _write_block(kv_layer: Any, page: Any, index: Any, offset: Any, k: Any, v: Any) -> None:
    """The rows of the touched block `index`; the first token lies at row `offset` of block 0."""
    block_size, dim = kv_layer.shape[3], kv_layer.shape[4]
    begin = max(0, index * block_size - offset)
    end = min(len(k), (index + 1) * block_size - offset)
    row = begin + offset - index * block_size
    for head in range(k.shape[1]):
        for t in range(end - begin):
            for into, values in ((kv_layer[page, 0], k), (kv_layer[page, 1], v)):
                target, source = into[head, row + t], values[begin + t, head]
                for d in range(dim):
                    target[d] = narrow(widen(source[d]), target[d])


@njit(**SERIAL)
def _write_serial(kv_layer: Any, pages: Any, offset: Any, k: Any, v: Any) -> None:
    for index in range(len(pages)):
        _write_block(kv_layer, pages[index], index, offset, k, v)


@njit(**PARALLEL)
def _write_parallel(kv_layer: Any, pages: Any, offset: Any, k: Any, v: Any) -> None:
    for index in prange(len(pages)):
        _write_block(kv_layer, pages[index], index, offset, k, v)
