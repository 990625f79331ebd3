"""What a comparison comes to: cells by task and length, and one ranking for each number of selected tokens."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from math import exp
from statistics import fmean
from typing import Any

import numpy as np

from moorage.runtime.evals.compare.measure import Measured
from moorage.runtime.evals.intervals import bootstrap, stratified_bootstrap, wilson

NUM_PARTS = 8
"""Equal parts of a long generation, whose KL shows whether it drifts."""
DRIFT_TASK = "generate"


@dataclass(frozen=True, slots=True)
class Cell:
    """One choice at one task and length: means over samples."""

    task: str
    length: int
    choice: str
    budget: int | None
    samples: int
    attended: float | None
    index_bytes: float | None
    kl: float
    kl_interval: tuple[float, float] | None
    """95 %, by the bootstrap over samples; None for a single sample."""
    agreement: float
    score: float | None
    score_interval: tuple[float, float] | None
    """95 %, Wilson's."""
    full_score: float | None
    perplexity: float | None
    full_perplexity: float | None
    drift: list[float] | None
    """KL in each of NUM_PARTS equal parts of the generated tokens; of the task `generate` alone."""
    repeated: float | None
    """Share of the generated tokens that end a run which stood in them before; of the same task."""

    def as_json(self) -> dict[str, Any]:
        """All fields by name."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Standing:
    """One choice over all tasks and lengths, each of which counts alike."""

    choice: str
    budget: int | None
    """Selected tokens; choices with the same are ranked together. None attends all, or names its own."""
    attended: float | None
    index_bytes: float | None
    kl: float
    kl_interval: tuple[float, float]
    agreement: float
    score: float | None
    """Mean over the tasks that have right answers."""
    score_interval: tuple[float, float] | None
    full_score: float | None
    perplexity_ratio: float | None
    """Perplexity over that of full attention."""

    def as_json(self) -> dict[str, Any]:
        """All fields by name."""
        return asdict(self)


def cells(results: Sequence[Measured]) -> list[Cell]:
    """A cell for each task, length and choice; by budget, the smallest KL first, within a task and length."""
    found = [
        _cell(group)
        for group in _grouped(results, lambda one: (one.task, one.length, one.choice, one.budget))
    ]
    places = list(dict.fromkeys((one.task, one.length) for one in results))
    return sorted(found, key=lambda cell: (places.index((cell.task, cell.length)), cell.budget or 0, cell.kl))


def standings(results: Sequence[Measured]) -> list[Standing]:
    """All choices; by budget, the smallest KL first."""
    found = [_standing(group) for group in _grouped(results, lambda one: (one.choice, one.budget))]
    return sorted(found, key=lambda standing: (standing.budget or 0, standing.kl))


def _cell(group: Sequence[Measured]) -> Cell:
    first = group[0]
    kl = [float(one.kl.mean()) for one in group]
    score = _mean_of(group, lambda one: one.score)
    generates = first.task == DRIFT_TASK
    return Cell(
        task=first.task,
        length=first.length,
        choice=first.choice,
        budget=first.budget,
        samples=len(group),
        attended=_mean_of(group, lambda one: one.num_keys),
        index_bytes=first.index_bytes,
        kl=fmean(kl),
        kl_interval=bootstrap(kl),
        agreement=fmean(float(one.agrees.mean()) for one in group),
        score=score,
        score_interval=None if score is None else wilson(score, len(group)),
        full_score=_mean_of(group, lambda one: one.full_score),
        perplexity=_perplexity(group, lambda one: one.loss),
        full_perplexity=_perplexity(group, lambda one: one.full_loss),
        drift=_drift(group) if generates else None,
        repeated=fmean(one.repeated for one in group) if generates else None,
    )


def _standing(group: Sequence[Measured]) -> Standing:
    first = group[0]
    by_cell = _grouped(group, lambda one: (one.task, one.length))
    kl = [[float(one.kl.mean()) for one in cell] for cell in by_cell]
    answered = [cell for cell in by_cell if cell[0].score is not None]
    score = _mean_of_cells(answered, lambda one: one.score)
    losses = _mean_of_cells([cell for cell in by_cell if cell[0].loss is not None], _extra_loss)
    return Standing(
        choice=first.choice,
        budget=first.budget,
        attended=_mean_of(group, lambda one: one.num_keys),
        index_bytes=first.index_bytes,
        kl=fmean(map(fmean, kl)),
        kl_interval=stratified_bootstrap(kl),
        agreement=fmean(fmean(float(one.agrees.mean()) for one in cell) for cell in by_cell),
        score=score,
        score_interval=None if score is None else wilson(score, sum(map(len, answered))),
        full_score=_mean_of_cells(answered, lambda one: one.full_score),
        perplexity_ratio=None if losses is None else exp(losses),
    )


def _grouped(results: Sequence[Measured], key: Callable[[Measured], Hashable]) -> list[list[Measured]]:
    groups: dict[Hashable, list[Measured]] = {}
    for one in results:
        groups.setdefault(key(one), []).append(one)
    return list(groups.values())


def _drift(group: Sequence[Measured]) -> list[float]:
    parts = [
        [float(part.mean()) for part in np.array_split(one.kl, min(NUM_PARTS, len(one.kl)))] for one in group
    ]
    return [float(mean) for mean in np.mean(parts, axis=0)]


def _mean_of(group: Sequence[Measured], value: Callable[[Measured], float | None]) -> float | None:
    known = [found for found in map(value, group) if found is not None]
    return fmean(known) if known else None


def _mean_of_cells(
    by_cell: Sequence[Sequence[Measured]], value: Callable[[Measured], float | None]
) -> float | None:
    means = [mean for mean in (_mean_of(cell, value) for cell in by_cell) if mean is not None]
    return fmean(means) if means else None


def _extra_loss(one: Measured) -> float | None:
    return None if one.loss is None or one.full_loss is None else one.loss - one.full_loss


def _perplexity(group: Sequence[Measured], loss: Callable[[Measured], float | None]) -> float | None:
    mean = _mean_of(group, loss)
    return None if mean is None else exp(mean)
