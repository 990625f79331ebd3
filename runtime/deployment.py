"""A configuration in the terms of the sizing formula, and whether it fits this host."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from moorage.runtime.config import ClusterConfig
from moorage.runtime.presets import PRESETS, kv_layout, resolve_memory
from moorage.runtime.sizing import Deployment, device_sizes, fixed_dram_bytes
from moorage.runtime.units import format_bytes
from moorage.workers.errors import InvalidConfig
from moorage.workers.sizes import LEAST_CHUNK, MOST_CHUNK
from moorage.workers.spec import ModelSpec

_CGROUP = Path("/sys/fs/cgroup")
_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True, slots=True)
class Host:
    """Memory of a host, in bytes; a container's limit counts as its total."""

    total_bytes: int
    available_bytes: int

    @property
    def usable_bytes(self) -> int:
        """What may be reserved: a fiftieth, at least 512 MiB, is left to everything else."""
        return max(0, self.available_bytes - max(512 * 1024**2, self.total_bytes // 50))


def read_host() -> Host:
    """This host as it is now."""
    memory = psutil.virtual_memory()
    total, available = memory.total, memory.available
    limit, used = _cgroup_bytes("memory.max"), _cgroup_bytes("memory.current")
    if limit is not None and used is not None and limit < total:
        total, available = limit, min(available, max(0, limit - used))
    return Host(total, available)


def deployment_of(config: ClusterConfig, model: ModelSpec) -> Deployment:
    """What the configuration asks for, as the sizing formula takes it; an automatic chunk at its longest."""
    plan = Deployment(
        model=model,
        layout=kv_layout(config, model),
        memory=resolve_memory(config),
        dtype=config.model.dtype,
        on_cpu=runs_on_cpu(config.gpu_workers.device),
        shards=config.kv_store.actors,
        stripe_blocks=config.kv_store.stripe_blocks,
        max_running=config.server.max_running,
        max_step_tokens=config.max_step_tokens,
        max_cached_block=config.memory.max_cached_block,
        device_memory=config.gpu_workers.device_memory,
        object_store_bytes=config.ray.object_store_memory,
        other_memories=tuple(
            resolve_memory(config, name) for name in PRESETS if name != config.memory.preset
        ),
    )
    measured = config.long_context.chunk_size == "auto" and config.scheduler.max_step_tokens is None
    return replace(plan, max_step_tokens=_longest_chunk(plan)) if measured and not plan.on_cpu else plan


def _longest_chunk(plan: Deployment) -> int:
    """Of the automatic ones whose workspace costs no slot of `device_memory`, or the shortest."""
    chunk = MOST_CHUNK
    while chunk > LEAST_CHUNK and plan.device_memory is not None:
        sizes = device_sizes(replace(plan, max_step_tokens=chunk, device_memory=None))
        if sizes.total_bytes <= plan.device_memory:
            break
        chunk //= 2
    return chunk


def runs_on_cpu(device: str) -> bool:
    """Whether `gpu_workers.device` comes to the CPU on this host, told without loading torch."""
    if device == "auto":
        return not _NVIDIA_DRIVER.exists() or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return device == "cpu"


def check_memory(config: ClusterConfig, model: ModelSpec, host: Host | None = None) -> None:
    """Raises InvalidConfig when a private cluster of this configuration does not fit the host's free memory.

    A joined Ray cluster places its actors itself, so nothing is checked for it here.
    """
    if config.ray.address != "local":
        return
    host = host or read_host()
    fixed = fixed_dram_bytes(deployment_of(config, model))
    need = config.kv_store.dram + fixed
    if need <= host.usable_bytes:
        return
    room = host.usable_bytes - fixed
    fix = f"use {room // 1024**2}MiB or less" if room > 1024**2 else "free memory or use a larger host"
    kept = host.available_bytes - host.usable_bytes
    raise InvalidConfig(
        f"kv_store.dram: {format_bytes(config.kv_store.dram)}, and {format_bytes(fixed)} for the model, Ray "
        f"and staging, don't fit this host, which has {format_bytes(host.available_bytes)} free of "
        f"{format_bytes(host.total_bytes)} and keeps {format_bytes(kept)} of it back; {fix}"
    )


def _cgroup_bytes(name: str) -> int | None:
    try:
        return int((_CGROUP / name).read_text())
    except (OSError, ValueError):
        return None
