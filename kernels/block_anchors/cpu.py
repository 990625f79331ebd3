"""Summarises the keys of sealed blocks in a few vectors, which is all that scoring reads."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moorage.kernels.checks import FLOAT32, STORAGE, check_array, check_ids, check_multiple, check_range
from moorage.kernels.compiling import njit
from moorage.kernels.half import Storage, narrow, widen
from moorage.kernels.numba_flags import SERIAL, num_workers
from moorage.kernels.thread_team import run_units, team_of, unit_call

KINDS = {"mean": 0, "bounds": 1, "max": 2, "fixed": 3, "important": 4}
_MEAN, _BOUNDS, _MAX, _FIXED = (KINDS[kind] for kind in ("mean", "bounds", "max", "fixed"))
Rotation = tuple[NDArray[np.float32], NDArray[np.float32]]


def build_anchors(
    kv_layer: Storage,
    anchors_layer: Storage,
    pages: NDArray[np.int32],
    kind: str,
    *,
    importance: NDArray[np.float32] | None = None,
    num_top: int = 0,
    rotation: Rotation | None = None,
) -> None:
    """Writes the anchors of `pages` in place, n vectors for each KV head and page.

    kv_layer [P, 2, Hkv, B, D]; anchors_layer [P, Hkv, A, D] of the same type. Sub-block i of n covers rows
    [i * B // n, (i + 1) * B // n). "mean" and "max" take the mean or maximum of a sub-block by channel, "bounds" its
    maximum and minimum as [max_0, min_0, max_1, ...] (Quest, ICML 2024), "fixed" the sub-block's first key.
    "important" ranks the block's keys by `importance` [len(pages), Hkv, B]; vector i is the mean of those ranked
    [i * num_top // n, (i + 1) * num_top // n) (InfLLM for n = 1). `rotation`, (cos, sin) of [len(pages), B, rd / 2],
    turns every key first. Raises ValueError if a vector would have no key.
    """
    check_array("kv_layer", kv_layer, STORAGE, (None, 2, None, None, None))
    num_pages, _, num_heads, block_size, dim = kv_layer.shape
    check_array("anchors_layer", anchors_layer, (kv_layer.dtype,), (num_pages, num_heads, None, dim))
    check_ids("pages", pages, num_pages)
    if kind not in KINDS:
        raise ValueError(f"kind: {kind!r}; expected one of {', '.join(KINDS)}")
    vectors = 2 if kind == "bounds" else 1
    check_multiple("anchors_layer vectors", anchors_layer.shape[2], vectors)
    check_range("sub-blocks", anchors_layer.shape[2] // vectors, 1, block_size)
    if kind == "important":
        check_range("num_top", num_top, anchors_layer.shape[2], block_size)
        if importance is None:
            raise ValueError("importance: none; anchors of important keys need one number for each key")
    weights = np.empty((len(pages), num_heads, 0), np.float32) if importance is None else importance
    check_array(
        "importance", weights, FLOAT32, (len(pages), num_heads, None if importance is None else block_size)
    )
    cos, sin = rotation or (np.empty((len(pages), block_size, 0), np.float32),) * 2
    check_array("rotation cos", cos, FLOAT32, (len(pages), block_size, None))
    check_array("rotation sin", sin, FLOAT32, cos.shape)
    check_range("rotated pairs", cos.shape[2], 0, dim // 2)
    team = team_of(num_workers(len(pages) * kv_layer[:1].nbytes // 2))
    _build(team, kv_layer, anchors_layer, pages, KINDS[kind], weights, num_top, cos, sin)


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
def _highest(keys: Any, begin: Any, end: Any, highest: Any) -> None:
    like = highest[0]
    upper = np.empty(keys.shape[1], np.float32)
    upper[:] = -np.inf
    for t in range(begin, end):
        key = keys[t]
        for d in range(len(key)):
            value = widen(key[d])
            upper[d] = value if value > upper[d] else upper[d]
    for d in range(len(upper)):
        highest[d] = narrow(upper[d], like)


@njit(**SERIAL)
def _rank(importance: Any, num_top: Any) -> Any:
    """Rows of the `num_top` largest, best first; among equals the earlier row."""
    ranked, taken = np.empty(num_top, np.int64), np.zeros(len(importance), np.bool_)
    for rank in range(num_top):
        best = -1
        for t in range(len(importance)):
            if not taken[t] and (best < 0 or importance[t] > importance[best]):
                best = t
        ranked[rank], taken[best] = best, True
    return ranked


@njit(**SERIAL)
def _important(keys: Any, importance: Any, num_top: Any, anchors: Any) -> None:
    like, count = anchors[0, 0], len(anchors)
    ranked = _rank(importance, num_top)
    for i in range(count):
        total = np.zeros(keys.shape[1], np.float32)
        begin, end = i * num_top // count, (i + 1) * num_top // count
        for t in ranked[begin:end]:
            for d in range(len(total)):
                total[d] += widen(keys[t, d])
        share = np.float32(1 / (end - begin))
        for d in range(len(total)):
            anchors[i, d] = narrow(total[d] * share, like)


@njit(**SERIAL)
def _rotated(keys: Any, cos: Any, sin: Any) -> Any:
    """Keys [B, D] as float32, channel i turned with channel i + rd / 2."""
    half = cos.shape[1]
    turned = np.empty(keys.shape, np.float32)
    for t in range(len(keys)):
        key, into = keys[t], turned[t]
        for d in range(half):
            low, high = widen(key[d]), widen(key[half + d])
            into[d] = low * cos[t, d] - high * sin[t, d]
            into[half + d] = high * cos[t, d] + low * sin[t, d]
        for d in range(2 * half, len(key)):
            into[d] = widen(key[d])
    return turned


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
def _build_head(keys: Any, anchors: Any, kind: Any, importance: Any, num_top: Any) -> None:
    """Anchors [A, D] of one KV head from its keys [B, D]."""
    count = anchors.shape[0] // (2 if kind == _BOUNDS else 1)
    if kind > _FIXED:
        _important(keys, importance, num_top, anchors)
        return
    for i in range(count):
        begin, end = i * keys.shape[0] // count, (i + 1) * keys.shape[0] // count
        if kind == _BOUNDS:
            _bounds(keys, begin, end, anchors[2 * i], anchors[2 * i + 1])
        elif kind == _MAX:
            _highest(keys, begin, end, anchors[i])
        else:
            _mean(keys, begin, end if kind == _MEAN else begin + 1, anchors[i])


@njit(**SERIAL)
def _build_item(
    item: Any,
    kv_layer: Any,
    anchors_layer: Any,
    pages: Any,
    kind: Any,
    importance: Any,
    num_top: Any,
    cos: Any,
    sin: Any,
) -> None:
    num_heads = kv_layer.shape[2]
    place, head = item // num_heads, item % num_heads
    page = pages[place]
    keys, anchors = kv_layer[page, 0, head], anchors_layer[page, head]
    if cos.shape[2]:
        turned = _rotated(keys, cos[place], sin[place])
        _build_head(turned, anchors, kind, importance[place, head], num_top)
    else:
        _build_head(keys, anchors, kind, importance[place, head], num_top)


@njit(**SERIAL)
def _build(
    team: Any, kv_layer: Any, anchors_layer: Any, pages: Any, kind: Any, importance: Any, num_top: Any, cos: Any,
    sin: Any,
) -> None:  # fmt: skip
    items = kv_layer, anchors_layer, pages, kind, importance, num_top, cos, sin
    run_units(team, len(pages) * kv_layer.shape[2], *unit_call(_build_item, items))
