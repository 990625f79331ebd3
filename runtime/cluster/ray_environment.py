"""Environment variables of Ray and of the processes that it starts."""

from __future__ import annotations

import os
from collections.abc import Mapping

from moorage.workers.process import NICENESS

_MEMORY_STOP = "0.98"
"""Ray kills processes above this share of the host's memory; room was reserved before, so it must not."""
_DEFAULTS = {
    # Idle OpenMP threads that spin would take the cores of the other processes.
    "OMP_WAIT_POLICY": "passive",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
}
_FIXED = {
    "RAY_memory_usage_threshold": _MEMORY_STOP,
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # A call of an actor after the end of Ray would start a Ray cluster anew.
    "RAY_ENABLE_AUTO_CONNECT": "0",
}
_PRIVATE = {
    # Ray starts its workers at niceness 15, behind everything else on the host.
    "RAY_worker_niceness": "0",
    # Times of 3 s that a node may be silent, so that one which was stopped can go on. Its end shows without this.
    "RAY_health_check_failure_threshold": "200",
    # Ray then takes the loopback address for this node's, and listens nowhere else.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}
_THREADS = ("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "NUMBA_", "TORCH", "PYTORCH_", "TRITON_")
_PASSED = (*_THREADS, "MOORAGE_", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO")
"""Beginnings of the names of what actors are given."""


def prepare(*, private: bool) -> None:
    """Sets this process's variables for Ray. It must come before ray is imported."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    os.environ.update(_FIXED | (_PRIVATE if private else {}))


def of_actors(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables that actors need, which a Ray cluster that was started elsewhere does not give them."""
    passed = {name: value for name, value in environment.items() if name.startswith(_PASSED)}
    return passed | {NICENESS: str(os.getpriority(os.PRIO_PROCESS, 0))}
