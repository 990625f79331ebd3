"""What a GPU worker must know to start; light, so that the coordinator can say it without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from moorage.workers.kv.formats.quantizer import Quantizer
from moorage.workers.spec import ExpertsPlace, KvLayout, ModelSpec, WeightKind
from moorage.workers.spec.setting import Limits, setting

CacheStrategy = Literal["lru", "fifo", "lru-s"]
ScoreOn = Literal["auto", "cpu", "device"]
AttendOn = Literal["device", "cpu"]


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Sizes of one engine's device memory, and what people set of it."""

    num_slots: int
    num_rings: int = 0
    """Sessions, running or idle, that have keys and values of sliding-window layers on the device at once."""
    piece_blocks: int | None = None
    """Blocks of one streamed piece; None is what suits the device."""
    max_cached_block: int | None = setting(
        None, "Device slots per session and layer for selected blocks; default 2 * topk.", of_preset=False
    )
    cache_strategy: CacheStrategy = setting(
        "lru",
        "Which block leaves its device slot first: the longest unused, the oldest, or the one of the smallest "
        "decayed score (lru-s: score = score * score_decay + received attention, as InfLLM).",
        of_preset=False,
        research=True,
    )
    in_place: bool = True
    """On a CPU, attend generated tokens to blocks where they lie in the stores, if these are on this host."""
    score_decay: float = setting(
        0.1,
        "Decay of lru-s from step to step.",
        Limits(least=0, most=1),
        of_preset=False,
        research=True,
    )
    score_on: ScoreOn = setting(
        "auto",
        "Where anchors are scored for generated tokens: cpu, by the KV actors; device, on copies in what "
        "device_memory leaves; auto tries both on a GPU and keeps the faster.",
        of_preset=False,
    )
    anchor_bytes: int | None = None
    """Device memory for anchors, under score_on other than cpu; None is unlimited."""
    key_rows: int = 0
    """Single keys of each KV head whose rows the device has room for from the start."""
    attend_on: AttendOn = setting(
        "device",
        "Where generated tokens attend selected blocks that the GPU does not hold: device fetches them; cpu attends "
        "them in DRAM meanwhile, and fetches a block that is selected twice in a row, which pays where the link is "
        "slower than the CPU.",
        of_preset=False,
    )
    dma_bytes: int | None = setting(
        None,
        "Pieces of at least this size, such as 256KiB, reach a GPU by DMA copies, smaller ones by a kernel that "
        "reads pinned memory; default is measured at the start.",
        Limits(unit="bytes"),
        of_preset=False,
    )
    prefetch: bool = setting(
        False,
        "While a layer computes on a GPU, begin to fetch the blocks that the next layer attended last.",
        of_preset=False,
    )


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
    weights: WeightKind = WeightKind.AUTO
    """How matrices are kept."""
    experts: ExpertsPlace = ExpertsPlace.DEVICE
    quantizer: Quantizer | None = field(default=None, compare=False)
    """The quantizer of the stores, where one process has both them and the worker. The layout has its digest."""
