"""Scales, zero points, levels and outliers that were fitted to each other cost less than ones that fit roughly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moorage.runtime.calibrate.levels import nearest
from moorage.runtime.calibrate.ranges import between_percentiles
from moorage.runtime.calibrate.refinement import KeyFit, fit_cost, refined, taken_apart
from moorage.workers.kv.formats.quantizer import normal_levels

BLOCKS, SIZE, HEADS, DIM = SHAPE = (12, 32, 2, 8)
CAPACITY = 6


def start_of(keys: torch.Tensor, bits: int) -> KeyFit:
    found = between_percentiles(keys.flatten(0, 1), 0.02)
    return KeyFit(found.scale, found.zero, found.low, found.high, normal_levels(bits))


def skewed() -> torch.Tensor:
    channels = torch.linspace(0.5, 5, HEADS * DIM).view(HEADS, DIM)
    return torch.randn(SHAPE).abs() ** 1.5 * channels - channels


def test_the_farthest_keys_of_a_block_are_outliers() -> None:
    keys = torch.rand(SHAPE) - 0.5
    fit = KeyFit(*(torch.full((HEADS, DIM), x) for x in (2.0, 0.0, -1.0, 1.0)), normal_levels(3))
    assert not taken_apart(keys, fit, CAPACITY).any()
    keys[3, :, 1, 2] = torch.linspace(-4, -2, SIZE)
    apart = taken_apart(keys, fit, CAPACITY)
    assert apart[3, :CAPACITY, 1, 2].all()
    assert apart.sum() == CAPACITY


def test_what_finds_no_place_costs_its_way_to_the_end_of_the_range() -> None:
    keys, weights, levels = torch.rand(SHAPE) - 0.5, torch.rand(SHAPE), normal_levels(3)
    fit = KeyFit(*(torch.full((HEADS, DIM), x) for x in (1.0, 0.0, -1.0, 1.0)), levels)
    keys[1, :, 0, 0] = torch.linspace(2, 3, SIZE)
    flat = keys.clamp(-1, 1)
    inside = (weights * (flat - nearest(flat, levels)) ** 2).sum()
    for capacity in (0, 5, SIZE, 1000):
        clipped = slice(0, max(0, SIZE - capacity))  # the largest have places
        wanted = inside + (weights[1, clipped, 0, 0] * (keys[1, clipped, 0, 0] - 1) ** 2).sum()
        assert fit_cost(keys, weights, fit, capacity) == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_it_costs_less(bits: int) -> None:
    keys, weights = skewed(), torch.rand(SHAPE)
    start = start_of(keys, bits)
    found = refined(keys, weights, start, CAPACITY)
    assert fit_cost(keys, weights, found, CAPACITY) < 0.9 * fit_cost(keys, weights, start, CAPACITY)
    assert (np.diff(found.levels) > 0).all()
    assert np.abs(found.levels).max() == 1
    assert (found.low <= found.zero - found.scale * abs(float(found.levels[0])) + 1e-4).all()


def test_channels_whose_errors_cost_more_have_more_outliers() -> None:
    keys, weights = torch.randn(SHAPE) ** 3, torch.ones(SHAPE)
    weights[..., : DIM // 2] = 100
    found = refined(keys, weights, start_of(keys, 3), CAPACITY)
    shares = taken_apart(keys, found, CAPACITY).float().mean((0, 1, 2))
    assert shares[: DIM // 2].mean() > shares[DIM // 2 :].mean()


def test_a_constant_channel_keeps_its_fit() -> None:
    keys = skewed()
    keys[..., 1, 3] = 2
    found = refined(keys, torch.rand(SHAPE), start_of(keys, 3), CAPACITY)
    assert (found.scale[1, 3], found.zero[1, 3]) == (0, 2)
    assert (found.low[1, 3], found.high[1, 3]) == (2, 2)


def test_channels_without_weight_are_left_as_they_are() -> None:
    keys, weights = skewed(), torch.rand(SHAPE)
    weights[..., 0, :] = 0
    start = start_of(keys, 3)
    found = refined(keys, weights, start, CAPACITY)
    torch.testing.assert_close(found.zero[0], start.zero[0])
    assert found.low.isfinite().all()
    assert found.high.isfinite().all()
