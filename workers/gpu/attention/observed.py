"""Backends that look at what another one attends, so that the token path itself has no hooks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch

from moorage.workers.gpu.attention.attended import Attended, DecodeMetadata
from moorage.workers.gpu.attention.backend import DecodeBackend
from moorage.workers.gpu.attention.exact import ExactAttention
from moorage.workers.gpu.engine.batch import DecodeBatch, DecodeStep
from moorage.workers.gpu.selection.key_importance import KeyImportance

Observer = Callable[[DecodeStep, int, Attended], None]
"""A call that is told of each session's attention in each layer of decode: (step, layer, what the batch attended)."""


class WatchedAttention(ABC):
    """Looks at the attention of `inner`, each session alone."""

    def __init__(self, inner: DecodeBackend) -> None:
        self._inner = inner

    def prepare(self, batch: DecodeBatch) -> DecodeMetadata:
        """See AttentionBackend."""
        metadata: DecodeMetadata = self._inner.prepare(batch)
        return metadata

    def forward(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, metadata: DecodeMetadata
    ) -> torch.Tensor:
        """See AttentionBackend."""
        out = self._inner.forward(layer, q, k, v, metadata)
        observed = self._observed(metadata.batch, layer)
        if not observed:
            return out
        attended = metadata.attended(layer)
        for step in observed:

            def observe(step: DecodeStep = step) -> None:
                self._observe(step, layer, attended)

            metadata.batch.guard.run(step.session, observe)
        return out

    def finish(self, metadata: DecodeMetadata) -> None:
        """See AttentionBackend."""
        self._inner.finish(metadata)

    def _observed(self, batch: DecodeBatch, layer: int) -> list[DecodeStep]:
        """The sessions that are looked at in a layer."""
        del layer
        return batch.live()

    @abstractmethod
    def _observe(self, step: DecodeStep, layer: int, attended: Attended) -> None:
        """Looks at one session."""


class ObservedAttention(WatchedAttention):
    """Tells `observer` of every attention of `inner`."""

    def __init__(self, inner: DecodeBackend, observer: Observer) -> None:
        super().__init__(inner)
        self._observer = observer

    def _observe(self, step: DecodeStep, layer: int, attended: Attended) -> None:
        self._observer(step, layer, attended)


class RecallSampling(WatchedAttention):
    """Measures recall on sampled steps, on one layer of each: the share of exact attention mass that was attended.

    It is exp(lse of the selected - lse of all) of each head (selection is measured, not believed).
    """

    def __init__(self, inner: DecodeBackend, exact: ExactAttention, num_layers: int) -> None:
        super().__init__(inner)
        self._exact, self._num_layers = exact, num_layers
        self._due: dict[int, list[DecodeStep]] = {}

    def prepare(self, batch: DecodeBatch) -> DecodeMetadata:
        """See AttentionBackend."""
        self._due = {}
        for step in batch.steps:
            every, index = step.memory.recall_every, step.session.decode_index
            if every and index >= 0 and not index % every and not step.exact:
                self._due.setdefault(index // every % self._num_layers, []).append(step)
        return super().prepare(batch)

    def _observed(self, batch: DecodeBatch, layer: int) -> list[DecodeStep]:
        del batch
        return self._due.get(layer, [])

    def _observe(self, step: DecodeStep, layer: int, attended: Attended) -> None:
        exact = step.session.rotations_of(layer).exact()
        if exact is None or attended.selected[step.row] is None:
            return
        query = self._exact.query(step, layer, attended.queries.plain[step.row], exact)
        recall = torch.exp(attended.lse[step.row] - self._exact(query).lse)
        step.session.stats.recall += recall.tolist()


class ImportanceCounting(WatchedAttention):
    """Counts the attention that keys receive from generated tokens, where anchors are made of it."""

    def __init__(self, inner: DecodeBackend, importance: KeyImportance) -> None:
        super().__init__(inner)
        self._importance = importance

    def _observed(self, batch: DecodeBatch, layer: int) -> list[DecodeStep]:
        del layer
        # Of a token that is drafted and then verified the first time counts.
        return [step for step in batch.live() if not step.exact]

    def _observe(self, step: DecodeStep, layer: int, attended: Attended) -> None:
        query, lse = attended.queries.plain[step.row], attended.lse[step.row]
        self._importance.add(step.session, layer, step.ranges.position, query[:, None], lse[:, None])
