"""Where a step's time goes."""

from __future__ import annotations

import time
from types import TracebackType


class Part:
    """One part of a step; a context that adds its body's time. Bodies of one part never nest."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._start = 0.0

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds += time.perf_counter() - self._start


class PartTimer:
    """Sums of host seconds by part of a step. On a GPU they count launches, not the device's own time."""

    def __init__(self) -> None:
        self._parts: dict[str, Part] = {}

    def __call__(self, part: str) -> Part:
        """A context whose body's time is added to `part`."""
        found = self._parts.get(part)
        if found is None:
            found = self._parts[part] = Part()
        return found

    def take(self) -> dict[str, float]:
        """The sums since the last call; they start again at zero."""
        sums = {name: part.seconds for name, part in self._parts.items() if part.seconds}
        for part in self._parts.values():
            part.seconds = 0.0
        return sums
