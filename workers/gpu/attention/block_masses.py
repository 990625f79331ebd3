"""Where in its past an inspected session looks: the exact attention mass on each block, on sampled steps."""

from __future__ import annotations

from math import gcd

import torch

from moorage.workers.gpu.attention.attended import Attended, DecodeMetadata
from moorage.workers.gpu.attention.backend import DecodeBackend
from moorage.workers.gpu.attention.exact import ExactAttention
from moorage.workers.gpu.attention.observed import WatchedAttention
from moorage.workers.gpu.engine.batch import DecodeBatch, DecodeStep

_DENSE_STEPS = 64
"""First generated tokens, each of which is sampled."""
_EVERY = 8
"""Steps between two samples after these."""
_GOLDEN = 0.618


class BlockMassSampling(WatchedAttention):
    """Measures one layer of a sampled step: successive samples are spread over the layers, the middle one first.

    The mass is that of exact attention over all keys, whatever the session selects. Recall, which is reported beside
    it, says how much of it the selection holds. A sample costs what full attention costs in one layer.
    """

    def __init__(self, inner: DecodeBackend, exact: ExactAttention, num_layers: int) -> None:
        super().__init__(inner)
        self._exact, self._num_layers = exact, num_layers
        self._stride = _stride(num_layers)
        self._due: dict[int, list[DecodeStep]] = {}

    def prepare(self, batch: DecodeBatch) -> DecodeMetadata:
        """See AttentionBackend."""
        self._due = {}
        for step in batch.steps:
            index = step.session.decode_index
            if step.memory.inspect and not step.exact and (index < _DENSE_STEPS or not index % _EVERY):
                layer = (self._num_layers // 2 + index * self._stride) % self._num_layers
                self._due.setdefault(layer, []).append(step)
        return super().prepare(batch)

    def _observed(self, batch: DecodeBatch, layer: int) -> list[DecodeStep]:
        del batch
        return self._due.get(layer, [])

    def _observe(self, step: DecodeStep, layer: int, attended: Attended) -> None:
        rotary = step.session.rotations_of(layer).exact()
        if rotary is None:
            return
        query = self._exact.query(step, layer, attended.queries.plain[step.row], rotary)
        masses, lse = self._exact.mass_by_block(query)
        stats = step.session.stats
        stats.block_masses = masses.cpu().numpy().astype("<f4").tobytes()
        if attended.selected[step.row] is not None:
            stats.recall += torch.exp(attended.lse[step.row] - lse).tolist()


def _stride(num_layers: int) -> int:
    """Near the golden section of the layers, and without a divisor in common with their number."""
    stride = max(1, round(num_layers * _GOLDEN))
    while gcd(stride, num_layers) > 1:
        stride += 1
    return stride
