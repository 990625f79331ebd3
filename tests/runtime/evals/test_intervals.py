"""Intervals: published values, and how often they hold what they should hold."""

from __future__ import annotations

import numpy as np
import pytest

from moorage.runtime.evals.intervals import bootstrap, stratified_bootstrap, wilson


def test_wilson_equals_published_values() -> None:
    # Newcombe (1998), table I: 81 of 263, 15 of 148, 0 of 20 and 1 of 29.
    for right, count, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson(right / count, count) == pytest.approx((low, high), abs=1e-4)


def test_wilson_is_symmetric_and_narrows() -> None:
    low, high = wilson(0.2, 10)
    assert wilson(0.8, 10) == pytest.approx((1 - high, 1 - low))
    wide, narrow = wilson(0.5, 10), wilson(0.5, 1000)
    assert wide[0] < narrow[0] < 0.5 < narrow[1] < wide[1]


def test_bootstrap_holds_the_true_mean_about_as_often_as_it_says(rng: np.random.Generator) -> None:
    held = 0
    for trial in range(200):
        low, high = bootstrap(rng.normal(3.0, 1.0, 30).tolist(), trial) or (0.0, 0.0)
        held += low <= 3.0 <= high
    assert 170 <= held <= 199


def test_bootstrap_lies_within_the_samples_and_knows_equal_ones() -> None:
    assert bootstrap([2.0]) is None
    assert bootstrap([2.0, 2.0, 2.0]) == (2.0, 2.0)
    low, high = bootstrap([0.0] * 9 + [1.0]) or (0.0, 0.0)
    assert low == 0.0
    assert 0.1 < high < 1.0


def test_groups_count_alike_whatever_their_size(rng: np.random.Generator) -> None:
    low, high = stratified_bootstrap([rng.normal(0, 0.1, 500).tolist(), rng.normal(10, 0.1, 20).tolist()])
    assert 4.9 < low < 5 < high < 5.1
