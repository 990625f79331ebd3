"""What a layer of decode attended, for those who measure it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from moorage.workers.gpu.engine.batch import DecodeBatch
from moorage.workers.gpu.selection.queries import LayerQueries
from moorage.workers.gpu.selection.selector import Selection


@dataclass(slots=True)
class Attended:
    """What one layer of decode attended; a row for each session of the batch."""

    queries: LayerQueries
    selected: list[Selection]
    lse: torch.Tensor
    """[N, Hq] fp32; what a row of a failed session holds means nothing."""
    keys: dict[int, NDArray[np.int32]] = field(default_factory=dict)
    """For each row of a session that selected single keys and no blocks: positions [Hkv, n], padded with -1."""
    completed: torch.Tensor | None = None
    """[N, Hq] fp32 as `lse`, with the completion, which estimates all other keys, of sessions that selected single
    keys; None where no completion is made."""


class DecodeMetadata(Protocol):
    """What the layers of one decode step share."""

    batch: DecodeBatch

    def attended(self, layer: int) -> Attended:
        """What the latest layer attended, for those who measure."""
