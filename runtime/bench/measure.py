"""Timing side by side: every subject runs once a round, so that a busy machine slows all of them alike."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import psutil

Subject = Callable[[], object]

WARM_ROUNDS = 2


def interleave(subjects: Mapping[str, Subject], rounds: int, repeats: int = 1) -> dict[str, float]:
    """Median seconds of one call of each subject; a run is `repeats` calls one after the other.

    The order rotates from round to round, so that nobody always follows the same neighbour. The first two rounds
    are not counted.
    """
    names = list(subjects)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(WARM_ROUNDS + rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            subject = subjects[name]
            start = time.perf_counter()
            for _ in range(repeats):
                subject()
            times[name].append((time.perf_counter() - start) / repeats)
    return {name: median(taken[WARM_ROUNDS:]) for name, taken in times.items()}


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` of `values` lie."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def describe_machine() -> dict[str, Any]:
    """Processor, memory and versions, without loading what they are the versions of."""
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "kernel": platform.release(),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("moorage", "numpy", "numba", "torch")},
    }


def installed(package: str) -> bool:
    """Whether a peer's package is there."""
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _version(package: str) -> str:
    return metadata.version(package) if installed(package) else "absent"


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
