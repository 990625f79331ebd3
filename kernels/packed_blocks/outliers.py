"""Which elements of a head are kept apart from the codes. `reference.py` defines it."""

from __future__ import annotations

from typing import Any

import numpy as np

from moorage.kernels.compiling import njit
from moorage.kernels.half import widen
from moorage.kernels.key_select.filtering import keep_best, list_above
from moorage.kernels.numba_flags import SERIAL
from moorage.kernels.packed_blocks.codes import EXACT
from moorage.kernels.packed_blocks.ranges import HIDDEN
from moorage.kernels.packed_blocks.tables import DEVIATIONS
from moorage.kernels.simd_lanes import LANES


@njit(**SERIAL)
def add_row_sums(source: Any, at: Any, count: Any, dim: Any, sums: Any, squares: Any) -> None:
    """Adds the sums of `count` stored rows and of their squares to float64 [count]."""
    for t in range(count):
        total, square, first = 0.0, 0.0, np.uint64(at + t * dim)
        for d in range(np.uint64(dim)):
            x = np.float64(widen(source[first + d]))
            total += x
            square += x * x
        sums[t] += total
        squares[t] += square


@njit(**SERIAL)
def add_channel_sums(source: Any, at: Any, count: Any, dim: Any, sums: Any, squares: Any) -> None:
    """The same for each channel over the rows."""
    for t in range(count):
        first = np.uint64(at + t * dim)
        for d in range(np.uint64(dim)):
            x = np.float64(widen(source[first + d]))
            sums[d] += x
            squares[d] += x * x


@njit(**EXACT)
def to_deviations(sums: Any, squares: Any, count: Any, vectors: Any, mean: Any, inverse: Any) -> None:
    """Means and inverse standard deviations, 0 in a constant vector, from sums over `count` elements."""
    for i in range(vectors):
        middle = sums[i] / count
        spread = np.float32(np.sqrt(max(squares[i] / count - middle * middle, 0.0)))
        mean[i] = np.float32(middle)
        inverse[i] = np.float32(1) / spread if spread > 0 else np.float32(0)


@njit(**EXACT)
def row_candidates(rows: Any, sizes: Any, mean: Any, inverse: Any, excess: Any, places: Any, row: Any) -> Any:
    """Elements of rows [B, width] that are far from their row's mean: their excess and places; returns how many."""
    block_size, dim, width = sizes
    found = np.int64(0)
    for t in range(block_size):
        middle, factor, first = mean[t], inverse[t], np.uint64(t * width)
        for d in range(np.uint64(dim)):
            row[d] = abs(rows[first + d] - middle) * factor
        found = _append(row, t, dim, DEVIATIONS, excess, places, found)
    return found


@njit(**EXACT)
def channel_candidates(
    rows: Any, sizes: Any, mean: Any, inverse: Any, excess: Any, places: Any, row: Any
) -> Any:
    """The same for elements that are far from their channel's mean."""
    block_size, dim, width = sizes
    found = np.int64(0)
    for t in range(block_size):
        first = np.uint64(t * width)
        for d in range(np.uint64(dim)):
            row[d] = abs(rows[first + d] - mean[d]) * inverse[d]
        found = _append(row, t, dim, DEVIATIONS, excess, places, found)
    return found


@njit(**EXACT)
def beyond_candidates(
    rows: Any, sizes: Any, low: Any, high: Any, inverse: Any, excess: Any, places: Any, row: Any
) -> Any:
    """The same for elements outside their channel's limits."""
    block_size, dim, width = sizes
    found = np.int64(0)
    for t in range(block_size):
        first = np.uint64(t * width)
        for d in range(np.uint64(dim)):
            x = rows[first + d]
            below, above = low[d] - x, x - high[d]
            row[d] = (below if below > above else above) * inverse[d]
        found = _append(row, t, dim, np.float32(0), excess, places, found)
    return found


@njit(**EXACT)
def _append(row: Any, t: Any, dim: Any, least: Any, excess: Any, places: Any, found: Any) -> Any:
    """Adds what is above `least` of a row, whose padding is not; the lists have LANES elements to spare."""
    into, numbers, vectors = excess.ctypes.data + 4 * found, places.ctypes.data + 4 * found, len(row) // LANES
    return found + list_above(row.ctypes.data, vectors, least, t * dim, numbers, into)


@njit(**EXACT)
def keep_largest(excess: Any, places: Any, found: Any, capacity: Any) -> Any:
    """Moves the places of the `capacity` largest of `found` excesses to the front, in order; returns how many."""
    return keep_best(places, excess, found, capacity) if capacity > 0 else np.int64(0)


@njit(**EXACT)
def write_list(
    source: Any, at: Any, places: Any, count: Any, before: Any, capacity: Any, halves: Any, listed: Any
) -> None:
    """Writes `count` places and the elements of `source[at:]` there to the list at `halves[listed]`.

    `before` is 0 for keys; for values it is the number of keys in the list.
    """
    for i in range(count):
        halves[listed + before + i] = places[i]
        halves[listed + capacity + before + i] = source[at + places[i]]


@njit(**EXACT)
def hide_listed(rows: Any, sizes: Any, halves: Any, begin: Any, count: Any) -> None:
    """HIDDEN in place of the elements of `count` places at `halves[begin]` in rows [B, width]."""
    _, dim, width = sizes
    for i in range(count):
        place = np.int64(halves[begin + i])
        rows[place // dim * width + place % dim] = HIDDEN


@njit(**EXACT)
def list_of(layout: Any, head: Any) -> Any:
    """Where in a block, as 16-bit numbers, the places of a head's outliers begin, after the two counts."""
    return (head * layout.head_bytes + layout.outliers) // 2 + 2
