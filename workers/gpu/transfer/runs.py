"""Copies of neighbours joined into longer ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Int32 = NDArray[np.int32]


def runs_of(sources: Int32, targets: Int32) -> list[tuple[int, int, int]]:
    """(first source, first target, count) of the longest runs in which both go up by one, in order."""
    if not len(sources):
        return []
    breaks = np.flatnonzero((np.diff(sources) != 1) | (np.diff(targets) != 1)) + 1
    starts = np.concatenate(([0], breaks))
    counts = np.diff(np.append(starts, len(sources)))
    columns = (part.tolist() for part in (sources[starts], targets[starts], counts))
    return list(zip(*columns, strict=True))
