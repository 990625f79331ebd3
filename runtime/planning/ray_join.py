"""Checks of a running Ray cluster before it is joined: whether it answers, and whether it has the resources."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from moorage.runtime.config.schema import ClusterConfig
from moorage.runtime.config.units import format_bytes
from moorage.workers.counting import counted
from moorage.workers.errors import InvalidConfig, Unavailable

CONNECT_TIMEOUT_S = 3.0
PROBE_TIMEOUT_S = 30.0
"""Longest wait for the cluster's resources; Ray itself would wait for minutes and print nothing."""


@dataclass(frozen=True, slots=True)
class RayNode:
    """Resources of one node by Ray's names: CPU, GPU, and memory in bytes."""

    total: Mapping[str, float]
    free: Mapping[str, float]


def check_joined_ray(config: ClusterConfig, actor_bytes: int, say: Callable[[str], None]) -> None:
    """Raises Unavailable when the cluster of `ray.address` does not answer in time, InvalidConfig without room there.

    `actor_bytes` is the memory of one KV actor. `say` is called with a line before the wait.
    """
    address = config.ray.address
    say(f"asking the Ray cluster at {address} for its resources, up to {PROBE_TIMEOUT_S:.0f} s")
    if address != "auto":
        _connect(address)
    check_resources(config, actor_bytes, probe_ray(address))


def check_resources(config: ClusterConfig, actor_bytes: int, nodes: Sequence[RayNode]) -> None:
    """Raises InvalidConfig when KV actors and worker can't all be placed on the nodes' free resources."""
    where = f"ray.address: the Ray cluster at {config.ray.address}"
    actors, workers = config.kv_store.actors, config.gpu_workers.count
    free = sum(int(node.free.get("CPU", 0)) for node in nodes)
    if free < actors + workers:
        total = sum(int(node.total.get("CPU", 0)) for node in nodes)
        raise InvalidConfig(
            f"{where} has {free} of its {counted(total, 'CPU')} free and needs {actors + workers}, one for each of "
            f"{counted(actors, 'KV actor')} and the GPU worker; free some, add nodes or lower kv_store.actors"
        )
    places = sum(_places(node, actor_bytes) for node in nodes)
    if places < actors:
        raise InvalidConfig(
            f"{where} has room for {places} of {counted(actors, 'KV actor')}, each of a CPU and "
            f"{format_bytes(actor_bytes)} of Ray's memory on one node; lower kv_store.dram or add nodes"
        )
    _check_gpu(config, nodes, where)


def probe_ray(address: str) -> tuple[RayNode, ...]:
    """The nodes of a running cluster, asked by a process that can be ended. Raises Unavailable with the reason."""
    command = [sys.executable, "-m", "moorage.runtime.planning.ray_probe", address]
    environ = {**os.environ, "RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE", "token")}
    try:
        done = subprocess.run(
            command, env=environ, capture_output=True, timeout=PROBE_TIMEOUT_S, check=False, text=True
        )
    except subprocess.TimeoutExpired:
        raise _unreachable(address, f"did not answer as Ray does within {PROBE_TIMEOUT_S:.0f} s") from None
    try:
        answer = json.loads(done.stdout.strip().rpartition("\n")[2])
        return tuple(RayNode(node["total"], node["free"]) for node in answer["nodes"])
    except (ValueError, KeyError, TypeError):
        reason = _reason(done)
    if address == "auto" and "any running Ray" in reason:
        reason = "no Ray cluster runs on this host"
    raise _unreachable(address, f"can't be joined ({reason})")


def ray_nodes() -> tuple[RayNode, ...]:
    """The nodes of the cluster that this process has joined."""
    from moorage.runtime.planning.ray_probe import nodes_of_joined

    return tuple(RayNode(node["total"], node["free"]) for node in nodes_of_joined())


def _connect(address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
    except (OSError, UnicodeError) as error:
        reason = "no answer" if isinstance(error, TimeoutError) else getattr(error, "strerror", None) or error
        raise _unreachable(address, f"does not answer ({reason})") from None


def _unreachable(address: str, what: str) -> Unavailable:
    return Unavailable(
        f"ray.address: {address} {what}; start a cluster with `ray start --head`, correct the address, or set it "
        "to local"
    )


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in done.stdout.splitlines() + done.stderr.splitlines() if line.strip()]
    return " ".join(lines[-1].split())[:200] if lines else f"exit status {done.returncode}"


def _places(node: RayNode, actor_bytes: int) -> int:
    cpus = int(node.free.get("CPU", 0))
    return cpus if actor_bytes <= 0 else min(cpus, int(node.free.get("memory", 0) // actor_bytes))


def _check_gpu(config: ClusterConfig, nodes: Sequence[RayNode], where: str) -> None:
    device = config.gpu_workers.device
    total = sum(node.total.get("GPU", 0) for node in nodes)
    wanted = device == "cuda" or (device == "auto" and total >= 1)
    if wanted and not any(node.free.get("GPU", 0) >= 1 and node.free.get("CPU", 0) >= 1 for node in nodes):
        held = (
            "no GPU"
            if total < 1
            else f"no node with a free GPU and a free CPU, of {counted(int(total), 'GPU')}"
        )
        raise InvalidConfig(f"{where} has {held}; free one, add a node, or set gpu_workers.device to cpu")
