"""What successive positions of one session see of the same blocks."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from moorage.kernels.compiling import njit
from moorage.kernels.numba_flags import SERIAL


class Entries(NamedTuple):
    """What R positions see, E entries at most for each; see `attend_head`."""

    count: Any
    """[R]"""
    order: Any
    """[R, E], ascending: entries of two positions with the same number are of the same block and part."""
    offset: Any
    begin: Any
    end: Any
    rotates: Any
    """[R, E]"""
    cos: Any
    sin: Any
    """[R, E, rd / 2]"""


@njit(**SERIAL)
def together(entries: Any, at: Any) -> Any:
    """(first, last, end): the positions whose entries come next and begin alike, and where the longest of them ends.

    first == last where no entry is left.
    """
    first, num_rows = np.int64(-1), len(at)
    for r in range(num_rows):
        left = at[r] < entries.count[r]
        if left and (first < 0 or entries.order[r, at[r]] < entries.order[first, at[first]]):
            first = np.int64(r)
    if first < 0:
        return np.int64(0), np.int64(0), np.int64(0)
    e = at[first]
    high, last = np.int64(entries.end[first, e]), first + 1
    while last < num_rows and at[last] < entries.count[last]:
        other = at[last]
        alike = entries.order[last, other] == entries.order[first, e]
        alike = alike and entries.begin[last, other] == entries.begin[first, e]
        if not alike or entries.rotates[last, other] != entries.rotates[first, e]:
            break
        high = max(high, np.int64(entries.end[last, other]))
        last += 1
    return first, last, high
