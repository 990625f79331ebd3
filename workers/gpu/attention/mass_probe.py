"""How much of the exact attention each head's attended keys hold, and how much lies on a given part of the past."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from moorage.workers.gpu.attention.attended import Attended
from moorage.workers.gpu.attention.exact import ExactAttention
from moorage.workers.gpu.attention.recall_probe import num_attended_keys
from moorage.workers.gpu.engine.batch import DecodeStep

Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class MassSample:
    """One layer of one decode step. Shares are of the exact attention mass, one for each query head."""

    step: int
    layer: int
    mass: Float32
    """[Hq] on the attended keys: exp(lse of the attended keys - lse of all keys)."""
    source: Float32 | None
    """[Hq] on the blocks of the probe's `source`; None where it has none."""
    num_keys: float
    """Keys that one head attended, the mean over heads."""
    estimated: Float32 | None = None
    """[Hq] `mass` as the step itself estimates it, by the means that stand for all other keys; None where none do."""


class MassProbe:
    """Measures the attention of decode steps while `enabled`; an `Observer` for evaluations.

    Unlike RecallProbe it looks for no better selection, so that it costs one exact pass and no more.
    """

    def __init__(self, exact: ExactAttention, block_size: int) -> None:
        self._exact, self._block_size = exact, block_size
        self.enabled = False
        self.source: range | None = None
        """Positions whose share of the exact attention is measured too, in whole blocks."""
        self.samples: list[MassSample] = []

    def __call__(self, step: DecodeStep, layer: int, attended: Attended) -> None:
        """Takes one sample."""
        rotary = step.session.rotations_of(layer).exact() if self.enabled else None
        if rotary is None:
            return
        query = self._exact.query(step, layer, attended.queries.plain[step.row], rotary)
        lse_all = self._exact(query).lse
        mass = torch.exp(attended.lse[step.row] - lse_all).clamp(max=1)
        source = None
        if self.source is not None:
            size = self._block_size
            blocks = np.arange(self.source.start // size, (self.source.stop - 1) // size + 1, dtype=np.int32)
            lse_source = torch.logsumexp(self._exact.lse_by_block(query, blocks), dim=0)
            source = torch.exp(lse_source - lse_all).cpu().numpy()
        num_keys = num_attended_keys(step.ranges, attended, step.row, self._block_size)
        self.samples.append(
            MassSample(
                step.session.decode_index,
                layer,
                mass.cpu().numpy(),
                source,
                num_keys,
                _estimated(step, attended),
            )
        )


def _estimated(step: DecodeStep, attended: Attended) -> Float32 | None:
    if attended.completed is None or step.row not in attended.keys or not step.selection.completion:
        return None
    share: Float32 = torch.exp(attended.lse[step.row] - attended.completed[step.row]).cpu().numpy()
    return share
