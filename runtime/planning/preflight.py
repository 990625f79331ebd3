"""Every check that needs no Ray and no weight, so that a mistake is reported within a second."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Sequence
from importlib.util import find_spec

from moorage.runtime.cluster import registry
from moorage.runtime.config.schema import ClusterConfig
from moorage.runtime.planning.access import check_access
from moorage.runtime.planning.exposure import check_exposure
from moorage.runtime.planning.gpu_presence import why_no_gpu
from moorage.runtime.planning.launch_plan import plan_launch
from moorage.runtime.planning.ray_join import check_joined_ray
from moorage.runtime.planning.session_limit import SessionLimit
from moorage.runtime.planning.tracing_packages import check_tracing
from moorage.workers.counting import counted
from moorage.workers.errors import InvalidConfig
from moorage.workers.spec import Scorer


def check_host(config: ClusterConfig, say: Callable[[str], None] = lambda _line: None) -> SessionLimit:
    """Makes every check that `runtime config` and `runtime launch` make before anything starts, cheap ones first.

    Raises InvalidConfig, InvalidModel or Unavailable, in one line, for a model, device, memory, port or Ray cluster
    that can't serve. Returns the limits of a session, with warnings for the user. `say` gets a line before a wait,
    and warnings about the server's address and about a missing tokenizer.
    """
    check_threads(config)
    _check_device(config)
    _check_scorer(config)
    plan = plan_launch(config)
    if plan.tokenizer is None:
        path = config.model.path
        missing = f"{path / 'tokenizer.json'}: missing" if path.is_dir() else f"{path}: holds no tokenizer"
        say(f"warning: {missing}; requests can send token ids, but neither text nor chat messages")
    listens = {"server.grpc": config.server.grpc, "server.http": config.server.http}
    for key, address in listens.items():
        if address in ("off", "auto"):
            continue
        _check_port(key, address)
    for warning in check_exposure(config.server):
        say(f"warning: {warning}")
    check_access(config.server)
    check_tracing(config.server.otlp)
    if config.ray.address != "local":
        check_joined_ray(config, plan.actor_bytes, say)
    return plan.limit


def check_threads(config: ClusterConfig) -> None:
    """Raises InvalidConfig for CPUs and threads of a private cluster that this host does not have."""
    if config.ray.address != "local":
        return
    allowed, threads, cpus = os.sched_getaffinity(0), config.gpu_workers.num_threads, os.cpu_count() or 1
    if threads is not None and threads > cpus:
        raise InvalidConfig(
            f"gpu_workers.num_threads: {threads} is more than the {counted(cpus, 'CPU')} of this host; "
            f"use {cpus} or less, or leave it out"
        )
    missing = sorted({cpu for bound in config.kv_store.cpus or () for cpu in bound} - allowed)
    if missing:
        raise InvalidConfig(
            f"kv_store.cpus: CPU {missing[0]} is not one that this process may run on; allowed are "
            f"{_ranges(sorted(allowed))}"
        )


def _check_device(config: ClusterConfig) -> None:
    reason = why_no_gpu() if config.gpu_workers.device == "cuda" else None
    if reason is not None and config.ray.address == "local":
        raise InvalidConfig(f"gpu_workers.device: cuda can't be used, since {reason}; set it to cpu or auto")


def _check_scorer(config: ClusterConfig) -> None:
    scorer = config.memory.scorer
    if scorer is not Scorer.NUMBA and find_spec("faiss") is None:
        raise InvalidConfig(
            f"memory.scorer: {scorer.value} needs faiss, which is not installed; install moorage[faiss] or use numba"
        )


def _ranges(cpus: Sequence[int]) -> str:
    """`0-3,8` for 0, 1, 2, 3 and 8."""
    parts: list[list[int]] = []
    for cpu in cpus:
        if parts and cpu == parts[-1][-1] + 1:
            parts[-1][1:] = [cpu]
        else:
            parts.append([cpu])
    return ",".join("-".join(map(str, part)) for part in parts)


def _check_port(key: str, address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        with socket.socket(found[0][0], socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(found[0][4])
    except (OSError, UnicodeError) as error:
        if getattr(error, "errno", None) == errno.EADDRINUSE and _own_cluster(address):
            raise InvalidConfig(
                f"{key}: a Moorage cluster serves at {address} already; stop it with `runtime stop --address "
                f"{address}`, or choose another port"
            ) from None
        reason = error.strerror if isinstance(error, OSError) else "no such host name"
        raise InvalidConfig(
            f"{key}: {address} can't be bound ({reason}); free it or choose another address"
        ) from None


def _own_cluster(address: str) -> bool:
    """Whether a cluster of this user listens there."""
    return any(record.address == address for record in registry.running())
