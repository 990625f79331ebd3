"""Ranges leave outliers outside, in the channels where that costs least."""

from __future__ import annotations

import numpy as np
import torch

from moorage.runtime.calibrate.levels import nearest
from moorage.runtime.calibrate.ranges import FACTORS, KeyRange, RangeSearch, between_percentiles
from moorage.workers.kv.formats.quantizer import normal_levels

NUM, HEADS, DIM = 4000, 2, 8
SHARE = 0.01
LEVELS = normal_levels(3)


def outside(keys: torch.Tensor, found: KeyRange) -> torch.Tensor:
    return (keys < found.low) | (keys > found.high)


def cost(keys: torch.Tensor, weights: torch.Tensor, found: KeyRange) -> float:
    """Of all errors of keys that are no outliers."""
    decoded = nearest(((keys - found.zero) / found.scale).contiguous(), LEVELS) * found.scale + found.zero
    return float((weights * (keys - decoded) ** 2)[~outside(keys, found)].sum())


def cheapest(keys: torch.Tensor, weights: torch.Tensor, start: KeyRange, outliers: float) -> KeyRange:
    return RangeSearch(keys, weights, start, LEVELS).cheapest(outliers)


def test_percentiles_leave_the_same_share_of_each_channel_outside() -> None:
    keys = torch.randn(NUM, HEADS, DIM) * torch.linspace(0.1, 10, DIM) + 3
    found = between_percentiles(keys, 2 * SHARE)
    assert ((keys < found.low).sum(0) == round(SHARE * NUM)).all()
    assert ((keys > found.high).sum(0) == round(SHARE * NUM)).all()
    whole = between_percentiles(keys, 0)
    torch.testing.assert_close((whole.low, whole.high), (keys.amin(0), keys.amax(0)))


def test_channels_whose_errors_cost_more_get_narrower_ranges_within_one_number_of_outliers() -> None:
    keys = torch.randn(NUM, HEADS, DIM)
    weights = torch.ones_like(keys)
    weights[..., : DIM // 2] = 100
    start = between_percentiles(keys, SHARE)
    found = cheapest(keys, weights, start, SHARE)
    assert (outside(keys, found).sum((0, 2)) <= SHARE * NUM * DIM).all()
    assert cost(keys, weights, found) < 0.95 * cost(keys, weights, start)
    shares = outside(keys, found).float().mean((0, 1))
    assert shares[: DIM // 2].min() > shares[DIM // 2 :].max()


def test_without_outliers_ranges_hold_everything_that_they_can() -> None:
    keys = torch.rand(NUM, HEADS, DIM) - 0.5
    start = between_percentiles(keys, 0.2)
    found = cheapest(keys, torch.ones_like(keys), start, 0)
    assert not outside(keys, found).any()
    few = cheapest(keys, torch.ones_like(keys), start.stretched(0.1), 0)
    np.testing.assert_allclose(few.scale / start.scale, 0.1 * FACTORS[-1], rtol=1e-4)


def test_a_constant_channel_keeps_its_range() -> None:
    keys = torch.randn(NUM, HEADS, DIM)
    keys[:, 1, 3] = 2
    found = cheapest(keys, torch.ones_like(keys), between_percentiles(keys, SHARE), SHARE)
    assert (found.scale[1, 3], found.zero[1, 3]) == (0, 2)
