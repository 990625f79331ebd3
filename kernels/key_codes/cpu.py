"""Summarises each key of sealed blocks in one bit a channel, relative to the mean of its block."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moorage.kernels.checks import (
    FLOAT32,
    STORAGE,
    UINT8,
    check_array,
    check_ids,
    check_multiple,
    check_range,
)
from moorage.kernels.compiling import njit
from moorage.kernels.half import Storage, narrow, widen
from moorage.kernels.key_codes.centres import encode_centres
from moorage.kernels.key_codes.signs import code_4, code_8, code_16, pair_vectors, store_signs
from moorage.kernels.key_codes.sizes import TOKENS, centre_bytes, code_bytes
from moorage.kernels.numba_flags import SERIAL, num_workers
from moorage.kernels.simd_lanes import LANES
from moorage.kernels.simd_rows import rotate_rows
from moorage.kernels.threads import run_each

Rotation = tuple[NDArray[np.float32], NDArray[np.float32]]
PAGES_AT_ONCE = 8
"""Pages that a thread takes in one call."""
MOST = np.float32(65504)
"""The largest fp16."""


def encode_keys(
    kv_layer: Storage,
    anchors_layer: Storage,
    codes_layer: NDArray[np.uint8],
    pages: NDArray[np.int32],
    rotation: Rotation | None = None,
    centres_layer: NDArray[np.uint8] | None = None,
) -> None:
    """Writes the anchors and the codes of `pages` in place, and where they are kept the centres.

    kv_layer [P, 2, Hkv, B, D], B a multiple of 16; anchors_layer [P, Hkv, 1, D] of the same type: the mean of a
    block's keys. codes_layer [P, bytes], for each KV head in turn: planes uint8 [C, B], C = ceil(D / 8); scales, the
    bits of fp16 [B]; the mean of the block's values, the bits of fp16 [D]. Bit d % 8 of byte d // 8 of key t is 1
    where channel d of x = Hadamard(key - mean) is at least 0, with the mean as stored; bits beyond D are 0. The scale
    is the mean of |x|, so that

        query . key ~ query . mean + scale * sum over d of Hadamard(query)_d * (2 bit_d - 1)

    `rotation`, (cos, sin) of [len(pages), B, rd / 2], turns every key first. `kernels.hadamard` has the transform.
    centres_layer [P, bytes] is as `encode_centres` says, for each KV head in turn; without bytes there are none.
    """
    check_array("kv_layer", kv_layer, STORAGE, (None, 2, None, None, None))
    num_pages, _, num_heads, block_size, dim = kv_layer.shape
    check_multiple("block size", block_size, TOKENS)
    check_array("anchors_layer", anchors_layer, (kv_layer.dtype,), (num_pages, num_heads, 1, dim))
    check_array("codes_layer", codes_layer, UINT8, (num_pages, code_bytes(num_heads, block_size, dim)))
    centres = np.empty((num_pages, 0), np.uint8) if centres_layer is None else centres_layer
    size = centre_bytes(num_heads, dim) if centres.shape[1] else 0
    check_array("centres_layer", centres, UINT8, (num_pages, size))
    check_ids("pages", pages, num_pages)
    cos, sin = rotation or (np.empty((len(pages), block_size, 0), np.float32),) * 2
    check_array("rotation cos", cos, FLOAT32, (len(pages), block_size, None))
    check_array("rotation sin", sin, FLOAT32, cos.shape)
    check_range("rotated pairs", cos.shape[2], 0, dim // 2)

    def encode(part: int) -> None:
        some = slice(part * PAGES_AT_ONCE, (part + 1) * PAGES_AT_ONCE)
        _encode_pages(kv_layer, anchors_layer, codes_layer, centres, pages[some], cos[some], sin[some])

    run_each(encode, -(-len(pages) // PAGES_AT_ONCE), num_workers(len(pages) * kv_layer[:1].nbytes))


@njit(**SERIAL)
def _widen_keys(keys: Any, cos: Any, sin: Any, rows: Any) -> None:
    """Keys [B, D] into the first D columns of rows; channel i is turned with channel i + rd / 2."""
    half, dim = cos.shape[1], keys.shape[1]
    if dim % LANES == 0 and half % 8 == 0:
        rotate_rows(keys, 0, len(keys), dim, cos, sin, 0, half, half, rows)
        return
    for t in range(len(keys)):
        for d in range(half):
            low, high = widen(keys[t, d]), widen(keys[t, half + d])
            rows[t, d] = low * cos[t, d] - high * sin[t, d]
            rows[t, half + d] = high * cos[t, d] + low * sin[t, d]
        for d in range(2 * half, dim):
            rows[t, d] = widen(keys[t, d])


@njit(**SERIAL)
def _mean_of(rows: Any) -> Any:
    """The mean of stored rows [B, n], in float32."""
    total = np.zeros(rows.shape[1], np.float32)
    for t in range(rows.shape[0]):
        # Not rows[t]: each such view costs two atomic operations, more than the sum.
        for d in range(rows.shape[1]):
            total[d] += widen(rows[t, d])
    share = np.float32(1 / len(rows))
    for d in range(len(total)):
        total[d] *= share
    return total


@njit(**SERIAL)
def _half(value: Any, like: Any) -> Any:
    """The bits of an fp16, at most MOST in size."""
    limited = MOST if value > MOST else (-MOST if value < -MOST else value)
    return narrow(limited, like)


@njit(**SERIAL)
def _code_rows(rows: Any, mean: Any, run: Any, codes: Any, planes: Any) -> Any:
    """Stores the signs of all rows, which change; returns for each the sum of sizes but for the transform's factor.

    One function for all of them: entering one with branches costs two atomic operations for each of its arrays.
    """
    block_size, width = rows.shape
    count, sizes = width // LANES, np.empty(block_size, np.float32)
    if run == width and count == 4:
        for t in range(block_size):
            sizes[t] = code_4(rows, t * width, mean, codes, t, block_size)
    elif run == width and count == 8:
        for t in range(block_size):
            sizes[t] = code_8(rows, t * width, mean, codes, t, block_size)
    elif run == width and count == 16:
        for t in range(block_size):
            sizes[t] = code_16(rows, t * width, mean, codes, t, block_size)
    else:
        for t in range(block_size):
            for d in range(width):
                rows[t, d] -= mean[d]
        step = 1
        while step * LANES < run:
            pair_vectors(rows, count * block_size, step)
            step *= 2
        for t in range(block_size):
            sizes[t] = store_signs(rows, t * width, count, run, codes, t, block_size, planes)
    return sizes


@njit(**SERIAL)
def _encode_head(keys: Any, values: Any, anchor: Any, codes: Any, centres: Any, cos: Any, sin: Any) -> None:
    """The anchor [D] and the codes, uint8 [B * (C + 2) + 2 D], of one KV head's keys and values [B, D].

    And its centres, where there is room for them.
    """
    block_size, dim = keys.shape
    count, planes, run = -(-dim // LANES), -(-dim // 8), dim & -dim
    # Channels beyond D are 0 and stay so: no run of the transform reaches them.
    rows = np.zeros((block_size, count * LANES), np.float32)
    _widen_keys(keys, cos, sin, rows)
    mean = _mean_of(rows)
    for d in range(dim):
        anchor[d] = narrow(mean[d], anchor[0])
        mean[d] = widen(anchor[d])
    if len(centres):
        encode_centres(rows, mean[:dim], centres)
    share = np.float32(1 / (math.sqrt(run) * dim))
    last, halves = codes[(planes - 1) * block_size :], codes[planes * block_size :].view(np.uint16)
    sizes = _code_rows(rows, mean, run, codes, planes)
    for t in range(block_size):
        halves[t] = _half(sizes[t] * share, halves[0])
        if dim % 8:
            last[t] &= (1 << dim % 8) - 1
    mean = _mean_of(values)
    for d in range(dim):
        halves[block_size + d] = _half(mean[d], halves[0])


@njit(**SERIAL)
def _encode_pages(
    kv_layer: Any, anchors_layer: Any, codes_layer: Any, centres_layer: Any, pages: Any, cos: Any, sin: Any
) -> None:
    num_heads = kv_layer.shape[2]
    size, centre_size = codes_layer.shape[1] // num_heads, centres_layer.shape[1] // num_heads
    for place in range(len(pages)):
        page = pages[place]
        for head in range(num_heads):
            codes = codes_layer[page, head * size : (head + 1) * size]
            keys, values, anchor = (
                kv_layer[page, 0, head],
                kv_layer[page, 1, head],
                anchors_layer[page, head, 0],
            )
            centres = centres_layer[page, head * centre_size : (head + 1) * centre_size]
            _encode_head(keys, values, anchor, codes, centres, cos[place], sin[place])
