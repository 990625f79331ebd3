"""Timing side by side: every subject runs once a round, so that a busy machine slows all of them alike."""

from __future__ import annotations

import os
import platform
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any, Generic, TypeVar

import psutil

Subject = Callable[[], object]

WARM_ROUNDS = 2
MIN_CALM = 5
"""Undisturbed runs that make a median of their own; on a quiet machine nearly all runs are undisturbed."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Sample(Generic[T]):
    """One run: what it returned, its seconds, and whether another process took a core from it meanwhile."""

    value: T
    seconds: float
    disturbed: bool


def sample(run: Callable[[], T]) -> Sample[T]:
    """Runs once. The kernel counts how often it took a core from one of this process's threads."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
    start = time.perf_counter()
    value = run()
    seconds = time.perf_counter() - start
    return Sample(value, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw > before)


def undisturbed(samples: Sequence[Sample[T]]) -> list[Sample[T]]:
    """The undisturbed samples; all of them where these are too few for a median."""
    calm = [taken for taken in samples if not taken.disturbed]
    return calm if len(calm) >= min(MIN_CALM, len(samples)) else list(samples)


def interleave(subjects: Mapping[str, Subject], rounds: int) -> dict[str, float]:
    """Median seconds of each subject over its undisturbed runs.

    The order rotates from round to round, so that no subject always follows the same neighbour. The first two rounds
    are not counted.
    """
    names = list(subjects)
    samples: dict[str, list[Sample[object]]] = {name: [] for name in names}
    for number in range(WARM_ROUNDS + rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            samples[name].append(sample(subjects[name]))
    return {name: median_s(taken[WARM_ROUNDS:]) for name, taken in samples.items()}


def median_s(samples: Sequence[Sample[T]]) -> float:
    """Median seconds of the undisturbed samples."""
    return median(taken.seconds for taken in undisturbed(samples))


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
