"""Levels minimise the weighted squared error, and Q-Norm gives back mean and deviation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moorage.runtime.calibrate.levels import fitted_levels, match_moments, nearest
from moorage.workers.kv.formats.quantizer import normal_levels

NUM = 20_000


def cost(values: torch.Tensor, weights: torch.Tensor, levels: np.ndarray) -> float:
    return float((weights * (values - nearest(values, levels)) ** 2).sum() / weights.sum())


def drawn(spread: float = 0.3) -> torch.Tensor:
    return (torch.randn(NUM) * spread).clamp(-1, 1)


def test_the_nearest_level_is_found() -> None:
    levels = np.float32([-1, -0.2, 0.1, 1])
    values = torch.tensor([-3, -0.61, -0.59, -0.04, 0.0, 0.54, 0.56, 2])
    wanted = levels[np.abs(values.numpy()[:, None] - levels).argmin(1)]
    np.testing.assert_array_equal(nearest(values, levels).numpy(), wanted)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_levels_cost_less_than_those_of_a_normal_distribution(bits: int) -> None:
    values, weights = drawn(), torch.rand(NUM) ** 4
    levels = fitted_levels(values, weights, bits)
    assert levels.shape == (2**bits,)
    assert (np.diff(levels) > 0).all()
    assert np.abs(levels).max() <= 1
    assert cost(values, weights, levels) < 0.9 * cost(values, weights, normal_levels(bits))
    # Each level is the weighted mean of the values that have it.
    of_level = nearest(values, levels)
    for level in levels:
        here = of_level == float(level)
        mean = (weights * values)[here].sum() / weights[here].sum()
        assert float(mean) == pytest.approx(float(level), abs=2e-3)


def test_levels_go_where_errors_cost_most() -> None:
    values = drawn()
    above = torch.where(values > 0, 1.0, 1e-4)
    assert (fitted_levels(values, above, 3) > 0).sum() > (fitted_levels(values, 1.0001 - above, 3) > 0).sum()


def test_values_that_occur_few_times_over_have_those_of_a_normal_distribution() -> None:
    values = torch.tensor([-0.5, 0.25]).repeat(100)
    np.testing.assert_array_equal(fitted_levels(values, torch.ones(200), 3), normal_levels(3))


def test_values_without_weight_do_not_count() -> None:
    values, weights = drawn(), torch.rand(NUM)
    with_others = torch.cat((values, torch.full((NUM,), 0.9)))
    found = fitted_levels(with_others, torch.cat((weights, torch.zeros(NUM))), 2)
    np.testing.assert_array_equal(found, fitted_levels(values, weights, 2))


def test_matched_levels_keep_mean_and_deviation() -> None:
    values = (drawn(0.2) + 0.1).clamp(-1, 1)
    levels = fitted_levels(values, torch.ones(NUM), 2)
    before = nearest(values, levels)
    codes = np.searchsorted(levels, before.numpy())
    after = torch.from_numpy(match_moments(levels, values)[codes])
    assert before.std() < 0.97 * values.std()
    assert float(after.std()) == pytest.approx(float(values.std()), rel=1e-4)
    assert float(after.mean()) == pytest.approx(float(values.mean()), abs=1e-5)
    np.testing.assert_array_equal(match_moments(levels, torch.full((9,), 0.1)), levels)
