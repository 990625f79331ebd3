"""What formats come to: one standing for each, beside the first of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import exp
from statistics import fmean
from typing import Any

from moorage.runtime.evals.formats.choices import Stored
from moorage.runtime.evals.intervals import bootstrap, wilson
from moorage.runtime.evals.runner import Summary
from moorage.runtime.evals.tasks import Place


@dataclass(frozen=True, slots=True)
class Perplexity:
    """The perplexity under one format."""

    value: float
    windows: int
    change: float
    """The share by which it is more than the first format's."""
    change_interval: tuple[float, float] | None
    """95 %, by the bootstrap over the windows that both have read; None for a single window."""


@dataclass(frozen=True, slots=True)
class Retrieved:
    """The samples of one task and length under one format."""

    task: str
    length: int
    score: float
    """Mean of the samples; of most tasks the share that is right."""
    samples: int
    interval: tuple[float, float] | None
    """95 %, Wilson's."""
    lost: int
    """Samples that the first format answers better."""
    gained: int
    """Samples that it answers worse."""


@dataclass(frozen=True, slots=True)
class Standing:
    """One format on one model."""

    name: str
    kv_bytes: float
    """Bytes of a token: keys and values of all layers."""
    index_bytes: float
    """Bytes of a token: anchors and codes of all layers."""
    ratio: float
    """How many times smaller keys and values are than the first format's."""
    perplexity: Perplexity | None
    retrieved: tuple[Retrieved, ...]

    @property
    def lost(self) -> int:
        """Samples of all tasks that the first format answers better."""
        return sum(cell.lost for cell in self.retrieved)

    def as_json(self) -> dict[str, Any]:
        """All fields by name."""
        return asdict(self) | {"lost": self.lost}


def standings(
    stores: Mapping[str, Stored], perplexity: Summary | None, retrieval: Summary | None
) -> list[Standing]:
    """A standing for each choice, in their order; the first is what the others are measured against."""
    labels = list(stores)
    losses = {label: _scores(perplexity, label) for label in labels}
    scores = {label: _scores(retrieval, label) for label in labels}
    first = labels[0]
    return [
        Standing(
            label,
            stores[label].kv_bytes,
            stores[label].index_bytes,
            stores[first].kv_bytes / stores[label].kv_bytes,
            _perplexity(losses[label], losses[first]),
            _retrieved(scores[label], scores[first]),
        )
        for label in labels
    ]


_Scores = dict[tuple[str, Place], float]
"""Scores by task and sample."""


def _scores(summary: Summary | None, label: str) -> _Scores:
    records = () if summary is None else summary.records
    return {
        (record.key.task, record.key.place): record.outcome.score
        for record in records
        if record.key.preset == label
    }


def _perplexity(own: _Scores, first: _Scores) -> Perplexity | None:
    if not own:
        return None
    changes = [loss - first[sample] for sample, loss in own.items()]
    interval = bootstrap(changes)
    shares = None if interval is None else (exp(interval[0]) - 1, exp(interval[1]) - 1)
    return Perplexity(exp(fmean(own.values())), len(own), exp(fmean(changes)) - 1, shares)


def _retrieved(own: _Scores, first: _Scores) -> tuple[Retrieved, ...]:
    groups: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for (task, place), score in own.items():
        groups.setdefault((task, place.length or 0), []).append((score, first[task, place]))
    return tuple(_cell(task, length, pairs) for (task, length), pairs in groups.items())


def _cell(task: str, length: int, pairs: Sequence[tuple[float, float]]) -> Retrieved:
    score = fmean(own for own, _ in pairs)
    lost = sum(own < first for own, first in pairs)
    gained = sum(own > first for own, first in pairs)
    return Retrieved(task, length, score, len(pairs), wilson(score, len(pairs)), lost, gained)
