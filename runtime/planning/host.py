"""A configuration in the terms of the sizing formula, and whether it fits this host."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from moorage.runtime.config.presets import PRESETS
from moorage.runtime.config.resolve import kv_layout
from moorage.runtime.config.schema import ClusterConfig
from moorage.runtime.config.session_settings import unsettled_memory
from moorage.runtime.config.units import format_bytes
from moorage.runtime.planning.deployment import Deployment
from moorage.runtime.planning.gpu_presence import why_no_gpu
from moorage.runtime.planning.memory import device_sizes, fixed_dram_bytes, host_weights_bytes, ray_bytes
from moorage.runtime.planning.quantizers import with_quantizer
from moorage.workers.errors import InvalidConfig
from moorage.workers.sizes import LEAST_CHUNK, MOST_CHUNK
from moorage.workers.spec import ModelSpec

_CGROUP = Path("/sys/fs/cgroup")


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
    layout, quantizer = with_quantizer(config, kv_layout(config, model))
    plan = Deployment(
        model=model,
        layout=layout,
        quantizer=quantizer,
        memory=unsettled_memory(config, None, model),
        dtype=config.model.dtype,
        weights=config.model.weights,
        experts=config.model.experts,
        on_cpu=runs_on_cpu(config.gpu_workers.device),
        shards=config.kv_store.actors,
        stripe_blocks=config.kv_store.stripe_blocks,
        max_running=config.server.max_running,
        max_step_tokens=config.max_step_tokens,
        max_cached_block=config.memory.max_cached_block,
        device_memory=config.gpu_workers.device_memory,
        object_store_bytes=config.ray.object_store_memory,
        other_memories=tuple(
            unsettled_memory(config, name, model) for name in PRESETS if name != config.memory.preset
        ),
    )
    measured = config.long_context.chunk_size == "auto" and config.scheduler.max_step_tokens is None
    return replace(plan, max_step_tokens=_longest_chunk(plan)) if measured and not plan.on_cpu else plan


def _longest_chunk(plan: Deployment) -> int:
    """The longest automatic chunk whose workspace costs no slot of `device_memory`, or the shortest chunk."""
    chunk = MOST_CHUNK
    while chunk > LEAST_CHUNK and plan.device_memory is not None:
        sizes = device_sizes(replace(plan, max_step_tokens=chunk, device_memory=None))
        if sizes.total_bytes <= plan.device_memory:
            break
        chunk //= 2
    return chunk


def runs_on_cpu(device: str) -> bool:
    """Whether `gpu_workers.device` means the CPU on this host, found without loading torch."""
    return device == "cpu" or (device == "auto" and why_no_gpu() is not None)


def check_memory(config: ClusterConfig, plan: Deployment, host: Host | None = None) -> None:
    """Raises InvalidConfig when a private cluster of this configuration does not fit the host's free memory.

    A joined Ray cluster places its actors itself, so nothing is checked for it here.
    """
    if config.ray.address != "local":
        return
    host = host or read_host()
    fixed = fixed_dram_bytes(plan)
    room = host.usable_bytes - fixed
    if config.kv_store.dram <= room:
        return
    kept = host.available_bytes - host.usable_bytes
    has = (
        f"this host, which has {format_bytes(host.available_bytes)} free of {format_bytes(host.total_bytes)} and "
        f"keeps {format_bytes(kept)} of it back"
    )
    if room < 1024**2:
        raise InvalidConfig(
            f"{_parts(plan)} don't fit {has}; free memory, use a larger host, or lower {_knob(plan)}"
        )
    raise InvalidConfig(
        f"kv_store.dram: {format_bytes(config.kv_store.dram)}, and {format_bytes(fixed)} for the model, Ray "
        f"and staging, don't fit {has}; use {room // 1024**2}MiB or less"
    )


def _parts(plan: Deployment) -> str:
    """What takes memory beside the KV cache, by part."""
    fixed = format_bytes(fixed_dram_bytes(plan))
    if not plan.on_cpu:
        experts = host_weights_bytes(plan)
        held = f", {format_bytes(experts)} of them for experts (model.experts host)" if experts else ""
        return f"{fixed} for Ray and staging{held}"
    device = device_sizes(plan)
    return (
        f"{fixed} beside the KV cache (weights {format_bytes(device.weights_bytes)}, slots and rings "
        f"{format_bytes(device.slots_bytes + device.rings_bytes)}, workspace "
        f"{format_bytes(device.workspace_bytes)}, the rest Ray and staging)"
    )


def _knob(plan: Deployment) -> str:
    """The keys that the largest part follows."""
    device = device_sizes(plan)
    if not plan.on_cpu or ray_bytes(plan) > device.total_bytes:
        return "kv_store.actors or ray.object_store_memory"
    if device.slots_bytes + device.rings_bytes >= max(device.weights_bytes, device.workspace_bytes):
        return "server.max_running, memory.topk or long_context.local_windows_len"
    if device.workspace_bytes > device.weights_bytes:
        return "long_context.chunk_size or local_windows_len"
    return "the size of the model, or its type with model.dtype"


def _cgroup_bytes(name: str) -> int | None:
    try:
        return int((_CGROUP / name).read_text())
    except (OSError, ValueError):
        return None
