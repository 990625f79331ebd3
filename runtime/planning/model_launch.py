"""Settings that a launch of a bare model directory adapts to this host, where the user gave none: port and memory."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from moorage.runtime.config.addresses import DEFAULT_ADDRESS
from moorage.runtime.config.load import build_config
from moorage.runtime.config.schema import ClusterConfig
from moorage.runtime.config.source import read_source
from moorage.runtime.config.units import format_bytes
from moorage.runtime.planning.host import Host, deployment_of, read_host
from moorage.runtime.planning.memory import fixed_dram_bytes
from moorage.workers.hf_config import read_model_spec

FREE_PORT = "127.0.0.1:0"
_LEAST_DRAM = 64 * 1024**2
_DRAM_STEP = 64 * 1024**2
_SHARE_OF_ROOM = 0.5
"""The share of what is free beside weights and Ray, since others may use the host too."""


@dataclass(frozen=True, slots=True)
class Adjustment:
    """One override, and a line that says why."""

    override: str
    reason: str


def adjustments(
    directory: Path,
    overrides: Sequence[str],
    environ: Mapping[str, str] = os.environ,
    host: Host | None = None,
) -> list[Adjustment]:
    """Overrides that make the defaults work on this host; none for a key that was given.

    Raises InvalidConfig or InvalidModel as a launch does.
    """
    source = read_source(directory, overrides, environ)
    config = build_config(source)
    found = []
    if ("server", "grpc") not in source.origin and not _can_bind(config.server.grpc):
        found.append(
            Adjustment(f"server.grpc={FREE_PORT}", f"{DEFAULT_ADDRESS} is in use; a free port is taken")
        )
    if ("kv_store", "dram") not in source.origin and config.ray.address == "local":
        found += _fitting_dram(config, host or read_host())
    return found


def _fitting_dram(config: ClusterConfig, host: Host) -> list[Adjustment]:
    """Half of the free memory when the default does not fit; nothing when not even little would."""
    plan = deployment_of(config, read_model_spec(config.model.path))
    room = host.usable_bytes - fixed_dram_bytes(plan)
    fitting = int(room * _SHARE_OF_ROOM) // _DRAM_STEP * _DRAM_STEP
    if config.kv_store.dram <= room or fitting < _LEAST_DRAM:
        return []
    default, chosen = format_bytes(config.kv_store.dram), format_bytes(fitting)
    return [
        Adjustment(
            f"kv_store.dram={fitting}", f"{default} of DRAM for KV do not fit this host; {chosen} are taken"
        )
    ]


def _can_bind(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError:
            return False
    return True
