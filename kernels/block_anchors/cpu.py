"""Summarises the keys of sealed blocks in a few vectors, which is all that scoring reads."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from moorage.kernels.checks import STORAGE, check_array, check_ids, check_multiple, check_range
from moorage.kernels.half import Storage, narrow, widen
from moorage.kernels.numba_flags import PARALLEL, SERIAL, num_workers


def build_anchors(kv_layer: Storage, anchors_layer: Storage, pages: NDArray[np.int32], quest: bool) -> None:
    """Writes the anchors of `pages` in place: channel bounds (Quest, ICML 2024) or means of sub-blocks.

    kv_layer [P, 2, Hkv, B, D]; anchors_layer [P, Hkv, A, D] of the same type. Sub-block i of n covers rows
    [i * B // n, (i + 1) * B // n); vectors are [max_0, min_0, max_1, ...] if `quest`, else [mean_0, mean_1, ...].
    Raises ValueError if a sub-block would be empty.
    """
    check_array("kv_layer", kv_layer, STORAGE, (None, 2, None, None, None))
    num_pages, _, num_heads, block_size, dim = kv_layer.shape
    check_array("anchors_layer", anchors_layer, (kv_layer.dtype,), (num_pages, num_heads, None, dim))
    check_ids("pages", pages, num_pages)
    vectors = 2 if quest else 1
    check_multiple("anchors_layer vectors", anchors_layer.shape[2], vectors)
    check_range("sub-blocks", anchors_layer.shape[2] // vectors, 1, block_size)
    build = _build_parallel if num_workers(len(pages) * kv_layer[:1].nbytes // 2) > 1 else _build_serial
    build(kv_layer, anchors_layer, pages, quest)


@njit(**SERIAL)
def _bounds(keys: Any, begin: Any, end: Any, highest: Any, lowest: Any) -> None:
    like = highest[0]
    upper, lower = np.empty(keys.shape[1], np.float32), np.empty(keys.shape[1], np.float32)
    upper[:], lower[:] = -np.inf, np.inf
    for t in range(begin, end):
        key = keys[t]
        for d in range(len(key)):
            value = widen(key[d])
            upper[d] = value if value > upper[d] else upper[d]
            lower[d] = value if value < lower[d] else lower[d]
    for d in range(len(upper)):
        highest[d], lowest[d] = narrow(upper[d], like), narrow(lower[d], like)


@njit(**SERIAL)
def _mean(keys: Any, begin: Any, end: Any, mean: Any) -> None:
    like = mean[0]
    total = np.zeros(keys.shape[1], np.float32)
    for t in range(begin, end):
        key = keys[t]
        for d in range(len(key)):
            total[d] += widen(key[d])
    share = np.float32(1 / (end - begin))
    for d in range(len(total)):
        mean[d] = narrow(total[d] * share, like)


@njit(**SERIAL)
def _build_head(keys: Any, anchors: Any, quest: Any) -> None:
    """Anchors [A, D] of one KV head from its keys [B, D]."""
    count = anchors.shape[0] // (2 if quest else 1)
    for i in range(count):
        begin, end = i * keys.shape[0] // count, (i + 1) * keys.shape[0] // count
        if quest:
            _bounds(keys, begin, end, anchors[2 * i], anchors[2 * i + 1])
        else:
            _mean(keys, begin, end, anchors[i])


@njit(**SERIAL)
def _build_serial(kv_layer: Any, anchors_layer: Any, pages: Any, quest: Any) -> None:
    for page in pages:
        for head in range(kv_layer.shape[2]):
            _build_head(kv_layer[page, 0, head], anchors_layer[page, head], quest)


@njit(**PARALLEL)
def _build_parallel(kv_layer: Any, anchors_layer: Any, pages: Any, quest: Any) -> None:
    num_heads = kv_layer.shape[2]
    for item in prange(len(pages) * num_heads):
        page, head = pages[item // num_heads], item % num_heads
        _build_head(kv_layer[page, 0, head], anchors_layer[page, head], quest)
