"""Ranges leave the outliers outside; normalised numbers lie between -1 and 1 and are weighted by their scale."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moorage.runtime.calibrate.fitting import (
    BLOCK,
    FitSettings,
    LayerFit,
    normalized_keys,
    normalized_values,
    value_outliers,
)
from moorage.runtime.calibrate.ranges import between_percentiles
from moorage.runtime.calibrate.samples import LayerSamples
from moorage.workers.errors import InvalidRequest

WINDOWS, TOKENS, HEADS, DIM = SHAPE = (2, 4 * BLOCK, 2, 16)
SHARE = 0.01


def samples(**replaced: torch.Tensor) -> LayerSamples:
    channels = torch.linspace(0.1, 10, HEADS * DIM).view(HEADS, DIM)
    made = {
        "keys": torch.randn(SHAPE) * channels + channels,
        "values": torch.randn(SHAPE) * torch.rand(WINDOWS, TOKENS, 1, 1),
        "key_gradients": torch.rand(SHAPE),
        "value_gradients": torch.rand(SHAPE),
    }
    return LayerSamples(**{**made, **replaced})


def test_keys_are_normalised_by_channel_and_weighted_by_the_square_of_its_scale() -> None:
    made = samples()
    made.keys[..., 1, 3] = 7
    found = between_percentiles(made.keys.flatten(0, 1), SHARE)
    normalized = normalized_keys(made.keys, made.key_gradients, found)
    inside = (made.keys >= found.low) & (made.keys <= found.high)
    inside[..., 1, 3] = False  # a constant channel needs no level
    assert len(normalized.values) == inside.sum()
    back = normalized.values * found.scale.expand(SHAPE)[inside] + found.zero.expand(SHAPE)[inside]
    torch.testing.assert_close(back, made.keys[inside], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(normalized.weights, (made.key_gradients * found.scale**2)[inside])
    assert normalized.values.abs().max() <= 1


def test_outliers_of_values_are_the_farthest_of_each_block_and_head() -> None:
    values = samples().values
    marked = value_outliers(values, SHARE)
    by_block = marked.view(WINDOWS, TOKENS // BLOCK, BLOCK, HEADS, DIM).sum((2, 4))
    assert (by_block == round(SHARE * BLOCK * DIM)).all()
    away = (values - values.mean((2, 3), keepdim=True)).abs() / values.std((2, 3), keepdim=True)
    block = slice(BLOCK, 2 * BLOCK)
    assert away[1, block, 0][marked[1, block, 0]].min() >= away[1, block, 0][~marked[1, block, 0]].max()


def test_values_are_normalised_by_token_without_outliers() -> None:
    made = samples()
    made.values[0, 9] = 0.25
    normalized = normalized_values(made.values, made.value_gradients, SHARE)
    assert normalized.values.abs().max() <= 1
    kept = ~value_outliers(made.values, SHARE)
    kept[0, 9] = False  # a constant token needs no level
    assert len(normalized.values) == kept.sum()
    token = made.values[1, 5][kept[1, 5]]
    scale = (token.max() - token.min()) / 2
    at = int(kept[:1].sum() + kept[1, :5].sum())
    torch.testing.assert_close(
        normalized.values[at : at + len(token)], (token - (token.max() + token.min()) / 2) / scale
    )
    torch.testing.assert_close(
        normalized.weights[at : at + len(token)], made.value_gradients[1, 5][kept[1, 5]] * scale**2
    )


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_layer_has_a_usable_quantizer(bits: int) -> None:
    found = LayerFit(samples(), FitSettings(outliers=SHARE)).quantizer(bits)
    assert found.fault(bits) is None
    assert found.key_scale.shape == (HEADS, DIM)
    ends = [found.key_zero + found.key_scale * found.key_levels[at] for at in (0, -1)]
    assert (found.key_low <= ends[0] + 1e-4).all()  # what has a level is no outlier
    assert (found.key_high >= ends[1] - 1e-4).all()
    assert found.key_feedback.any()


def test_sinks_are_left_out() -> None:
    made = samples()
    made.keys[:, :5], made.values[:, :5] = 1000, -1000
    without = LayerSamples(*(getattr(made, name)[:, 5:] for name in LayerSamples.__slots__))
    found = LayerFit(made, FitSettings(fp16_sinks=5, outliers=SHARE)).quantizer(3)
    wanted = LayerFit(without, FitSettings(fp16_sinks=0, outliers=SHARE)).quantizer(3)
    for (name, got), (_, expected) in zip(found.arrays(), wanted.arrays(), strict=True):
        np.testing.assert_array_equal(got, expected, err_msg=name)


def test_keys_beyond_fp16_are_refused() -> None:
    keys = torch.full(SHAPE, torch.inf)
    with pytest.raises(InvalidRequest, match="keys or values that FP16 does not hold"):
        LayerFit(samples(keys=keys), FitSettings())
