"""Checks between the position keys of a configuration that need no model."""

from __future__ import annotations

from collections.abc import Iterator

from moorage.runtime.config.resolve import resolve_preset
from moorage.runtime.config.schema import ClusterConfig
from moorage.workers.spec import Positions

Complaint = tuple[str, str, str]


def position_complaints(config: ClusterConfig) -> Iterator[Complaint]:
    """All that is wrong between position keys: (section, key, what is wrong and the fix)."""
    memory, preset = config.memory, resolve_preset(config)
    if preset.positions is Positions.ROLLING and preset.topk != 0:
        yield (
            "memory",
            "positions",
            "rolling gives only sinks and window a position; set memory.topk to 0, or use rope or clamped",
        )
    if preset.positions is Positions.DCA and preset.topk == 0:
        yield (
            "memory",
            "positions",
            "dca needs keys beyond the window and topk is 0; raise memory.topk, or use rope or rolling",
        )
    for key in ("dca_chunk", "mscale"):
        if getattr(memory, key) is not None and preset.positions is not Positions.DCA:
            yield (
                "memory",
                key,
                f"belongs to dca and positions are {preset.positions.value}; "
                "remove it or set memory.positions to dca",
            )
    if preset.dca_chunk is not None and preset.dca_chunk % preset.block_size:
        yield (
            "memory",
            "dca_chunk",
            f"{preset.dca_chunk} is not a multiple of block_size {preset.block_size}; "
            f"use {max(1, preset.dca_chunk // preset.block_size) * preset.block_size} or another multiple",
        )
    if memory.rope_scaling is not None and memory.rope_scaling_factor is not None:
        yield (
            "memory",
            "rope_scaling_factor",
            "is short for a rope_scaling of type dynamic, and rope_scaling is given too; remove one of the two",
        )
