"""Cells and the ranking from results made by hand."""

from __future__ import annotations

from math import e, exp

import numpy as np
import pytest

from moorage.runtime.evals.compare.measure import Measured, repeated_share
from moorage.runtime.evals.compare.standings import cells, standings
from moorage.runtime.evals.intervals import wilson


def result(
    task: str,
    choice: str,
    kl: list[float],
    *,
    index: int = 0,
    budget: int | None = 64,
    loss: tuple[float, float] | None = None,
    score: tuple[float, float] | None = None,
) -> Measured:
    return Measured(
        task,
        1024,
        index,
        choice,
        budget,
        None if budget is None else 14.0,
        np.array(kl),
        np.array([True] + [False] * (len(kl) - 1)),
        loss and loss[0],
        loss and loss[1],
        score and score[0],
        score and score[1],
        100.0,
        0.5,
    )


RESULTS = [
    result("continue", "full", [0, 0], budget=None, loss=(2, 2)),
    result("continue", "wide", [0.1, 0.3], loss=(2.5, 2)),
    result("continue", "narrow", [1, 3], loss=(3, 2)),
    result("records", "full", [0, 0], budget=None, score=(1, 1)),
    result("records", "wide", [0.2, 0.2], score=(0.75, 1)),
    result("records", "wide", [0.4, 0.4], index=1, score=(0.25, 1)),
    result("records", "narrow", [0.1, 0.1], score=(0, 1)),
    result("records", "wide", [0.05, 0.05], budget=128, score=(1, 1)),
]


def test_cells_are_means_over_samples_by_budget_and_kl() -> None:
    found = cells(RESULTS)
    assert [(cell.task, cell.choice, cell.budget) for cell in found] == [
        ("continue", "full", None),
        ("continue", "wide", 64),
        ("continue", "narrow", 64),
        ("records", "full", None),
        ("records", "narrow", 64),
        ("records", "wide", 64),
        ("records", "wide", 128),
    ]
    wide = found[5]
    assert (wide.samples, wide.kl, wide.score) == (2, pytest.approx(0.3), 0.5)
    assert wide.score_interval == wilson(0.5, 2)
    assert wide.kl_interval == pytest.approx((0.2, 0.4))
    assert (wide.perplexity, wide.drift, wide.repeated) == (None, None, None)
    assert (found[1].perplexity, found[1].full_perplexity) == pytest.approx((exp(2.5), exp(2)))


def test_every_task_counts_alike_in_the_ranking_of_a_budget() -> None:
    full, wide, narrow, most = standings(RESULTS)
    assert [(one.choice, one.budget) for one in (full, wide, narrow, most)] == [
        ("full", None),
        ("wide", 64),
        ("narrow", 64),
        ("wide", 128),
    ]
    assert wide.kl == pytest.approx((0.2 + 0.3) / 2)
    assert narrow.kl == pytest.approx((2 + 0.1) / 2)
    assert (wide.score, wide.full_score, most.perplexity_ratio) == (0.5, 1, None)
    assert narrow.perplexity_ratio == pytest.approx(e)
    assert wide.kl_interval == pytest.approx((0.2, 0.3))


def test_a_long_generation_has_its_kl_by_part() -> None:
    (cell,) = cells(
        [result("generate", "wide", [*range(16)]), result("generate", "wide", [2.0] * 16, index=1)]
    )
    assert cell.drift == [(2 * part + 0.5 + 2) / 2 for part in range(8)]
    assert cell.repeated == 0.5
    (short,) = cells([result("generate", "wide", [1, 2, 3])])
    assert short.drift == [1, 2, 3]


def test_repeated_tokens_end_a_run_that_stood_before() -> None:
    assert repeated_share([1, 2, 3, 4, 5, 6, 7, 8, 9, 10]) == 0
    assert repeated_share([1, 2, 3, 4, 5, 6, 7, 8] * 2) == pytest.approx(1 / 16)
    assert repeated_share([7] * 20) == pytest.approx(12 / 20)
