"""What a GPU worker must know to start; light, so that the coordinator can say it without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from moorage.workers.spec import KvLayout, ModelSpec

CacheStrategy = Literal["lru", "fifo", "lru-s"]

ScoreOn = Literal["auto", "cpu", "device"]
"""Where anchors are scored for generated tokens; auto is the device if it is a GPU and proves faster."""

AttendOn = Literal["device", "cpu"]
"""Where generated tokens attend chosen blocks that the device does not hold."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Sizes of one engine's device memory."""

    num_slots: int
    piece_blocks: int | None = None
    """Blocks of one streamed piece; None is what suits the device."""
    max_cached_block: int | None = None
    """Slots per layer for chosen blocks; None is twice `topk`."""
    cache_strategy: CacheStrategy = "lru"
    in_place: bool = True
    """On a CPU, attend generated tokens to blocks where they lie in the stores, if these are on this host."""
    score_decay: float = 0.1
    """Of a block's score from step to step, under lru-s."""
    score_on: ScoreOn = "cpu"
    anchor_bytes: int | None = None
    """Device memory for anchors, under score_on other than cpu; None is unlimited."""
    attend_on: AttendOn = "device"
    """cpu leaves a chosen block to the host, in this host's memory, until it is chosen twice in a row."""
    dma_bytes: int | None = None
    """Pieces of at least this size reach a GPU by DMA, smaller ones by a kernel; None is measured at the start."""
    prefetch: bool = False
    """While a layer computes, the blocks that the next one attended in the last step travel ahead."""


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """A model, where it runs, and how its KV is laid out."""

    model_dir: Path
    spec: ModelSpec
    dtype: str
    """float32, bfloat16, float16 or auto (the checkpoint's)."""
    device: str
    """auto, cuda or cpu."""
    layout: KvLayout
    stripe_blocks: int
    engine: EngineSettings
    num_threads: int | None = None
    """CPU threads of the linear layers; None leaves it to torch."""
