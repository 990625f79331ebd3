"""What a GPU worker must know to start; light, so that the coordinator can say it without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from moorage.workers.sizes import STREAM_PIECE_BLOCKS
from moorage.workers.spec import KvLayout, ModelSpec

CacheStrategy = Literal["lru", "fifo", "lru-s"]


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Sizes of one engine's device memory."""

    num_slots: int
    piece_blocks: int = STREAM_PIECE_BLOCKS
    """Blocks of one streamed piece."""
    max_cached_block: int | None = None
    """Slots per layer for chosen blocks; None is twice `topk`."""
    cache_strategy: CacheStrategy = "lru"
    in_place: bool = True
    """On a CPU, attend generated tokens to blocks where they lie in the stores, if these are on this host."""
    score_decay: float = 0.1
    """Of a block's score from step to step, under lru-s."""


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
