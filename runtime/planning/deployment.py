"""What the sizes of a cluster depend on, beside the context."""

from __future__ import annotations

from dataclasses import dataclass

from moorage.workers.kv.formats.quantizer import Quantizer
from moorage.workers.spec import ExpertsPlace, KvLayout, MemorySpec, ModelSpec, WeightKind, WindowLayout


@dataclass(frozen=True, slots=True)
class Deployment:
    """What sizes depend on, beside the context: model, store, the axes of a session, limits."""

    model: ModelSpec
    layout: KvLayout
    memory: MemorySpec
    dtype: str
    """Type of weights and activations; auto is the checkpoint's own."""
    on_cpu: bool
    """Whether the device's memory is the host's."""
    shards: int = 2
    stripe_blocks: int = 8
    weights: WeightKind = WeightKind.AUTO
    """How matrices are kept."""
    experts: ExpertsPlace = ExpertsPlace.DEVICE
    """Where the weights of experts lie; on a CPU both places are one."""
    max_running: int = 8
    max_step_tokens: int = 4096
    max_cached_block: int | None = None
    device_memory: int | None = None
    object_store_bytes: int = 256 * 1024**2
    other_memories: tuple[MemorySpec, ...] = ()
    """Axes that a request may ask for instead; the slots must hold one session of each."""
    quantizer: Quantizer | None = None
    """The quantizer by which blocks are packed; the layout has its digest."""

    @property
    def windows(self) -> WindowLayout:
        """Rings of the sliding-window layers."""
        return WindowLayout.of(self.model, self.layout)

    @property
    def weight_dtype(self) -> str:
        """float32, bfloat16 or float16."""
        return self.model.dtype if self.dtype == "auto" else self.dtype
