"""Cells of the comparison: means over passages with their interval, and how well a measure of mass predicts KL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moorage.runtime.evals.fidelity.measure import Said

RETRIEVAL_SHARE = 0.1
"""A head that puts this share of its attention on the text that is copied, on average, is a retrieval head."""
LOW_PERCENTILE = 5
MEASURES = {
    "mass": "mean mass",
    "low_mass": "5th percentile of mass",
    "retrieval_mass": "retrieval heads' mass",
    "estimated_mass": "estimated mass",
}
"""Field of a cell -> what it is called."""
_T_QUANTILES = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045,
)  # fmt: skip
"""Quantiles of Student's t at 97.5 %, for 1, 2, ... degrees of freedom."""
_NORMAL_QUANTILE = 1.96
Heads = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Cell:
    """One choice at one task and length: means over passages."""

    task: str
    length: int
    choice: str
    budget: int | None
    passages: int
    attended: float | None
    """Keys attended by a layer and head."""
    index_bytes: float | None
    kl: float
    kl_interval: float | None
    """Half of the 95 % interval of `kl` over passages; None for a single passage."""
    kl_by_passage: list[float]
    agreement: float
    """Share of scored tokens at which the likeliest token is full attention's."""
    flip_margin: float | None
    """Most nats between full attention's two likeliest tokens where another token is the likeliest; None where the
    likeliest token is always full attention's."""
    lost_hits: list[tuple[int, int, float]]
    """(passage, scored token, nats between full attention's two likeliest) of each hit of full attention's that is
    none under this choice."""
    hits: float
    full_hits: float
    mass: float | None
    low_mass: float | None
    """5th percentile over queries, layers and heads."""
    retrieval_mass: float | None
    """Mean over the retrieval heads; None where none was found."""
    low_retrieval_mass: float | None
    mass_by_head: list[list[float]] | None
    """[layers][Hq]"""
    estimated_mass: float | None = None
    """`mass` as the steps themselves estimate it; None where single keys are not selected."""

    def as_json(self) -> dict[str, Any]:
        """All fields by name."""
        return asdict(self)


def retrieval_heads(results: Sequence[Said]) -> Heads | None:
    """[layers, Hq] of heads that attend what a text copies, under full attention; None where nothing was copied."""
    sources = [said.source.mean(axis=1) for said in results if said.source is not None]
    return np.mean(sources, axis=0) >= RETRIEVAL_SHARE if sources else None


def cells(results: Sequence[Said]) -> list[Cell]:
    """A cell for each task, length and choice, the smallest KL first within a task and length."""
    heads = retrieval_heads(results)
    groups: dict[tuple[str, int, str, int | None], list[Said]] = {}
    for said in results:
        groups.setdefault((said.task, said.length, said.choice, said.budget), []).append(said)
    found = [_cell(group, heads) for group in groups.values()]
    places = list(dict.fromkeys((said.task, said.length) for said in results))
    return sorted(found, key=lambda cell: (places.index((cell.task, cell.length)), cell.kl))


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's, with mean ranks for equal values; None where one of them is the same everywhere."""
    one, other = (_ranks(np.asarray(values, np.float64)) for values in (first, second))
    if len(one) < 2 or one.min() == one.max() or other.min() == other.max():
        return None
    return float(np.corrcoef(one, other)[0, 1])


def predictions(found: Sequence[Cell]) -> dict[str, float | None]:
    """Rank correlation of each measure with KL over all cells that select; -1 would predict it wholly."""
    return {measure: rank_correlation(*points(found, measure)) for measure in MEASURES}


def points(found: Sequence[Cell], measure: str) -> tuple[list[float], list[float]]:
    """The measure and KL of all cells that select and have it."""
    pairs = [(getattr(cell, measure), cell.kl) for cell in found if cell.index_bytes is not None]
    known = [(value, kl) for value, kl in pairs if value is not None]
    return [value for value, _ in known], [kl for _, kl in known]


def _cell(group: Sequence[Said], heads: Heads | None) -> Cell:
    first = group[0]
    by_passage = [float(said.kl.mean()) for said in group]
    masses = [said.mass for said in group if said.mass is not None]
    every = np.concatenate(masses, axis=1) if masses else None
    of_heads = None if every is None or heads is None or not heads.any() else every.swapaxes(1, 2)[heads]
    keys = [said.num_keys for said in group if said.num_keys is not None]
    guesses = [said.estimated for said in group if said.estimated is not None]
    return Cell(
        task=first.task,
        length=first.length,
        choice=first.choice,
        budget=first.budget,
        passages=len(group),
        attended=fmean(keys) if keys else None,
        index_bytes=first.index_bytes,
        kl=fmean(by_passage),
        kl_interval=_interval(by_passage),
        kl_by_passage=by_passage,
        agreement=fmean(float(said.agrees.mean()) for said in group),
        flip_margin=_flip_margin(group),
        lost_hits=_lost_hits(group),
        hits=fmean(float(said.hits.mean()) for said in group),
        full_hits=fmean(float(said.full_hits.mean()) for said in group),
        mass=None if every is None else float(every.mean()),
        low_mass=None if every is None else float(np.percentile(every, LOW_PERCENTILE)),
        retrieval_mass=None if of_heads is None else float(of_heads.mean()),
        low_retrieval_mass=None if of_heads is None else float(np.percentile(of_heads, LOW_PERCENTILE)),
        mass_by_head=None if every is None else every.mean(axis=1).tolist(),
        estimated_mass=fmean(float(each.mean()) for each in guesses) if guesses else None,
    )


def _flip_margin(group: Sequence[Said]) -> float | None:
    flipped = [float(margin) for said in group for margin in said.margins[~said.agrees]]
    return max(flipped, default=None)


def _lost_hits(group: Sequence[Said]) -> list[tuple[int, int, float]]:
    return [
        (said.passage, int(token), float(said.margins[token]))
        for said in group
        for token in np.flatnonzero(said.full_hits & ~said.hits)
    ]


def _interval(values: Sequence[float]) -> float | None:
    """Half of the 95 % interval of the mean, by Student's t."""
    if len(values) < 2:
        return None
    freedom = len(values) - 1
    quantile = _T_QUANTILES[freedom - 1] if freedom <= len(_T_QUANTILES) else _NORMAL_QUANTILE
    return float(quantile * stdev(values) / len(values) ** 0.5)


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 0, equal values at their mean rank."""
    below = (values[:, None] > values).sum(axis=1)
    equal = (values[:, None] == values).sum(axis=1)
    ranks: NDArray[np.float64] = below + (equal - 1) / 2
    return ranks
