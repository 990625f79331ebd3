"""Where a step's time goes, and what a trial at the start takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

import torch

_ROUNDS = 3


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
    """Sums of host seconds by part of a step, and of bytes copied to the device.

    On a GPU the seconds count launches, not the device's own time.
    """

    def __init__(self) -> None:
        self._parts: dict[str, Part] = {}
        self.link_bytes = 0
        """Bytes that were copied from the stores to the device, since the last `take_link_bytes`."""

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

    def take_link_bytes(self) -> int:
        """The bytes since the last call."""
        taken, self.link_bytes = self.link_bytes, 0
        return taken


def least_seconds(run: Callable[[], object], device: torch.device) -> float:
    """The least time of some runs on device and host, after one run that compiles and warms up."""
    found = []
    for _ in range(_ROUNDS + 1):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - start)
    return min(found[1:])
