"""Layers where errors cost more get more bits than others, at the same number on the mean."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from moorage.runtime.calibrate.fitting import FitSettings, LayerFit
from moorage.runtime.calibrate.layer_bits import WORTH, coding_cost, spread_bits
from moorage.runtime.calibrate.samples import LayerSamples


def costs(*scales: float) -> list[dict[int, float]]:
    """Of layers whose errors cost a fourth with each bit more."""
    return [{bits: scale * 4.0**-bits for bits in (2, 3, 4)} for scale in scales]


def test_the_dearest_layer_takes_a_bit_from_the_cheapest() -> None:
    assert spread_bits(costs(1, 100, 2, 3), 3) == (2, 4, 3, 3)
    assert spread_bits(costs(1, 100, 90, 2, 50), 3) == (2, 4, 4, 2, 3)


def test_a_bit_stays_where_it_gains_too_little() -> None:
    assert spread_bits(costs(1, 2, 3), 3) == (3, 3, 3)
    gained, lost = 3 / 4**4, 3 / 4**3
    even = gained / lost
    assert spread_bits(costs(1, WORTH / even * 1.01), 3) == (2, 4)
    assert spread_bits(costs(1, WORTH / even * 0.99), 3) == (3, 3)


@pytest.mark.parametrize("bits", [2, 4])
def test_without_a_cost_of_more_or_fewer_bits_all_layers_are_alike(bits: int) -> None:
    assert spread_bits(costs(1, 1000), bits) == (bits, bits)
    assert spread_bits(costs(1000), 3) == (3,)


def samples(rng: np.random.Generator) -> LayerSamples:
    """Two windows of 133 tokens, two KV heads of 16; the gradients of the first channels are larger."""
    rows = rng.standard_normal((4, 2, 133, 2, 16), np.float32)
    rows[2:] *= np.linspace(2, 0.1, 16, dtype=np.float32)
    keys, values, *gradients = (torch.from_numpy(each) for each in rows)
    return LayerSamples(keys.half(), values.half(), *(each.bfloat16() for each in gradients))


def test_the_cost_is_that_of_what_the_codec_gives_back(rng: np.random.Generator) -> None:
    made = samples(rng)
    fit = LayerFit(made, FitSettings())
    found = [coding_cost(made, fit.quantizer(bits), 5) for bits in (2, 3, 4)]
    assert found[0] > 2 * found[1] > 4 * found[2] > 0
    doubled = (2 * made.key_gradients, 2 * made.value_gradients)
    dear = replace(made, key_gradients=doubled[0], value_gradients=doubled[1])
    assert coding_cost(dear, fit.quantizer(3), 5) == pytest.approx(4 * found[1], rel=1e-4)
