"""Finds the centres of a block's keys, and stores them in four bits a channel.

The first level of a selection scores them in place of all keys of a block, see `kernels.decode_keys.first_level`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moorage.kernels.compiling import njit
from moorage.kernels.hadamard import turn_heads
from moorage.kernels.half import narrow, widen
from moorage.kernels.key_codes.sizes import CENTRE_CHANNELS, CENTRES
from moorage.kernels.numba_flags import SERIAL

ROUNDS = 2
"""Rounds of k-means. The first centres are keys, each the farthest from those before it."""
LARGEST = 15
"""The largest code; code c stands for (2 c - LARGEST) times the centre's scale."""
_MOST = np.float32(65504)
_HALF = np.float32(0.5)
_QUAD, _VECTOR = 4, 16
"""Channels that lie side by side for each centre, and channels of 64 bytes of unpacked codes."""


@njit(**SERIAL)
def _distances(columns: Any, centre: Any, found: Any) -> None:
    """found [B]: the squared distances of keys, columns [D, B], from a centre [D]."""
    found[:] = 0
    for d in range(columns.shape[0]):
        for t in range(columns.shape[1]):
            difference = columns[d, t] - centre[d]
            found[t] += difference * difference


@njit(**SERIAL)
def _assign(columns: Any, centres: Any, nearest: Any, own: Any) -> None:
    """The squared distance of each key from the nearest centre, and which it is; the first of equal ones."""
    found = np.empty(columns.shape[1], np.float32)
    for m in range(len(centres)):
        _distances(columns, centres[m], found)
        for t in range(len(found)):
            if m == 0 or found[t] < nearest[t]:
                nearest[t], own[t] = found[t], m


@njit(**SERIAL)
def _farthest_keys(rows: Any, columns: Any, mean: Any, centres: Any) -> None:
    """The key that is farthest from the mean, then those that are farthest from the centres before them."""
    found, nearest = np.empty(len(rows), np.float32), np.empty(len(rows), np.float32)
    _distances(columns, mean, nearest)
    for m in range(len(centres)):
        farthest = np.argmax(nearest)
        for d in range(centres.shape[1]):
            centres[m, d] = rows[farthest, d]
        _distances(columns, centres[m], found)
        for t in range(len(found)):
            nearest[t] = min(nearest[t], found[t]) if m else found[t]


@njit(**SERIAL)
def _move(rows: Any, own: Any, centres: Any) -> None:
    """Each centre becomes the mean of its keys; one without keys stays."""
    sums, counts = np.zeros(centres.shape, np.float32), np.zeros(len(centres), np.int64)
    for t in range(len(own)):
        counts[own[t]] += 1
        for d in range(sums.shape[1]):
            sums[own[t], d] += rows[t, d]
    for m in range(len(centres)):
        if counts[m]:
            share = np.float32(1 / counts[m])
            for d in range(sums.shape[1]):
                centres[m, d] = sums[m, d] * share


@njit(**SERIAL)
def find_centres(rows: Any, mean: Any, centres: Any, radii: Any) -> None:
    """centres [C, D] of keys rows [B, D or more], and the largest distance of a key of each from it, radii [C]."""
    columns = rows[:, : centres.shape[1]].T.copy()
    nearest, own = np.empty(len(rows), np.float32), np.empty(len(rows), np.int64)
    _farthest_keys(rows, columns, mean, centres)
    _assign(columns, centres, nearest, own)
    for _ in range(ROUNDS):
        _move(rows, own, centres)
        _assign(columns, centres, nearest, own)
    radii[:] = 0
    for t in range(len(own)):
        radii[own[t]] = max(radii[own[t]], np.sqrt(nearest[t]))


@njit(**SERIAL)
def encode_centres(rows: Any, mean: Any, out: Any) -> None:
    """Stores the centres of one KV head's keys rows [B, D or more], whose mean is [D], as bytes `out`.

    Of the transformed centres come four bits a channel. Channel d of centre m lies in byte
    64 (d // 32) + 16 (d % 16 // 4) + 4 m + d % 4: in its lower half where d // 16 is even. Scales [C] and radii [C],
    the bits of fp16, follow.
    """
    dim = len(mean)
    centres, radii = np.empty((CENTRES, dim), np.float32), np.empty(CENTRES, np.float32)
    find_centres(rows, mean, centres, radii)
    turn_heads(centres)
    channels = -(-dim // CENTRE_CHANNELS) * CENTRE_CHANNELS
    halves = out[channels * CENTRES // 2 :].view(np.uint16)
    out[: channels * CENTRES // 2] = 0
    for m in range(CENTRES):
        largest = np.float32(0)
        for d in range(dim):
            largest = max(largest, abs(centres[m, d]))
        halves[m] = narrow(min(largest / np.float32(LARGEST), _MOST), halves[0])
        halves[CENTRES + m] = narrow(min(radii[m], _MOST), halves[0])
        scale = widen(halves[m])
        share = _HALF / scale if scale > 0 else np.float32(0)
        for d in range(dim):
            code = int(np.floor(centres[m, d] * share + np.float32(LARGEST) * _HALF + _HALF))
            code = min(max(code, 0), LARGEST)
            place = d // 32 * 64 + d % _VECTOR // _QUAD * 16 + m * 4 + d % _QUAD
            out[place] |= np.uint8(code << 4 if d // _VECTOR % 2 else code)
