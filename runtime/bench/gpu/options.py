"""What a run measures, parsed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure, and for how long."""

    device: torch.device
    shape: str
    contexts: Sequence[int]
    prefill_contexts: Sequence[int]
    batches: Sequence[int]
    device_memory: int
    chunk_tokens: int
    steps: int
    budget_s: float
    threads: int
    host_memory: int | None = None
    """Bytes that a filled store may take; None is most of what is free."""
    only: Sequence[str] = ()
    """Parts of row names; others are left out. Empty is all."""

    @property
    def cuda(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    def wants(self, row_name: str) -> bool:
        """Whether a row of that name is asked for."""
        return not self.only or any(part in row_name for part in self.only)
