"""Environment variables of Ray and of the processes that it starts."""

from __future__ import annotations

import os
from collections.abc import Mapping

from moorage.workers.process import NICENESS

NICENESS_OF_WORKERS = 5
"""How much higher than the server's it is. The server computes little, and its answers must not wait for steps."""
_MEMORY_STOP = "0.98"
"""Share of the host's memory above which Ray kills processes. All memory is reserved before, so it should not."""
_DEFAULTS = {
    # Idle OpenMP threads would otherwise spin on cores that other processes need.
    "OMP_WAIT_POLICY": "passive",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
}
_FIXED = {
    "RAY_memory_usage_threshold": _MEMORY_STOP,
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Otherwise a call of an actor after the end of Ray starts another Ray cluster.
    "RAY_ENABLE_AUTO_CONNECT": "0",
}
_PRIVATE = {
    # Ray's default for its workers is niceness 15, below everything else on the host.
    "RAY_worker_niceness": str(NICENESS_OF_WORKERS),
    # How many times 3 s a node may be silent. A node that was stopped can then continue; its end is noticed at once.
    "RAY_health_check_failure_threshold": "200",
    # Its control service listens after 0.1 s of CPU time. Now and then one hangs, for which Ray waits half a minute.
    "RAY_gcs_server_port_wait_time_s": "10",
    # Ray then uses the loopback address as this node's, and listens on no other.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}
_THREADS = ("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "NUMBA_", "TORCH", "PYTORCH_", "TRITON_")
_PASSED = (*_THREADS, "MOORAGE_", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO")
"""Prefixes of the variables that are passed to actors."""


def prepare(*, private: bool) -> None:
    """Sets this process's variables for Ray; must be called before ray is imported."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    os.environ.update(_FIXED | (_PRIVATE if private else {}))


def of_actors(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables that actors need. In a Ray cluster that was started elsewhere they do not inherit them."""
    passed = {name: value for name, value in environment.items() if name.startswith(_PASSED)}
    return passed | {NICENESS: str(asked_niceness())}


def asked_niceness() -> int:
    """The niceness of the processes that compute. The system allows at most 19."""
    return min(os.getpriority(os.PRIO_PROCESS, 0) + NICENESS_OF_WORKERS, 19)
