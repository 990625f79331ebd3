"""Where a step's time goes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class PartTimer:
    """Sums of host seconds by part of a step. On a GPU they count launches, not the device's own time."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Adds the body's time to `part`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._sums[part] += time.perf_counter() - start

    def take(self) -> dict[str, float]:
        """The sums since the last call; they start again at zero."""
        sums = dict(self._sums)
        self._sums.clear()
        return sums
