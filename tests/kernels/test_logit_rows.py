from __future__ import annotations

import numpy as np
import pytest
import torch

from moorage.kernels.logit_rows import summarise_rows


@pytest.mark.parametrize("width", [1, 2, 15, 16, 2047, 2048, 2049, 49152, 128_256])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_matches_torch(rng, width, count):
    logits = (5 * rng.standard_normal((count, width))).astype(np.float32)
    places, most, mass = summarise_rows(logits)
    np.testing.assert_array_equal(places, logits.argmax(-1))
    np.testing.assert_array_equal(most, logits.max(-1))
    expected = torch.from_numpy(logits).double().logsumexp(-1).numpy()
    np.testing.assert_allclose(mass, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("places", [(7, 8), (100, 3000), (4095, 4999), (2048, 2049)])
def test_of_equal_logits_the_first_is_the_largest(places):
    logits = np.zeros((1, 5000), np.float32)
    logits[0, list(places)] = 3
    assert summarise_rows(logits)[0] == places[0]


def test_excluded_tokens_weigh_nothing():
    logits = np.full((2, 3000), -np.inf, np.float32)
    logits[0, 2999], logits[1, :2] = 5, 0
    places, most, mass = summarise_rows(logits)
    np.testing.assert_array_equal(places, [2999, 0])
    np.testing.assert_array_equal(most, [5, 0])
    np.testing.assert_allclose(mass, [5, np.log(2)], rtol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 2500, 2999])
def test_what_is_not_finite_shows_in_the_mass_of_its_row_alone(value, place):
    logits = np.zeros((3, 3000), np.float32)
    logits[1, place] = value
    mass = summarise_rows(logits)[2]
    np.testing.assert_array_equal(np.isfinite(mass), [True, False, True])


def test_a_row_of_which_every_token_is_excluded_has_no_finite_mass():
    assert not np.isfinite(summarise_rows(np.full((1, 50), -np.inf, np.float32))[2][0])


def test_large_logits_do_not_overflow():
    logits = np.array([[1e30, -1e30, 1e30], [200, 100, 0]], np.float32)
    assert summarise_rows(logits)[2] == pytest.approx([1e30, 200])


def test_rows_do_not_depend_on_one_another(rng):
    logits = rng.standard_normal((5, 49152)).astype(np.float32)
    together = summarise_rows(logits)
    for row in range(5):
        for found, alone in zip(together, summarise_rows(logits[row : row + 1]), strict=True):
            np.testing.assert_array_equal(found[row : row + 1], alone)
