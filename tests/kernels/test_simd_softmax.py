from __future__ import annotations

import numpy as np
import pytest
from numba import njit

from moorage.kernels.simd_softmax import row_peak, row_weights

FACTOR, PEAK = np.float32(1.3), np.float32(2.5)


@njit
def largest(row, vectors):
    return row_peak(row.ctypes.data, vectors)


@njit
def weights(like, row, vectors, factor, peak, out):
    return row_weights(like, row.ctypes.data, vectors, factor, peak, out.ctypes.data)


@pytest.mark.parametrize("vectors", [0, 1, 4])
def test_the_largest_passes_over_nan(rng, vectors):
    row = rng.standard_normal(80).astype(np.float32)
    row[3::7] = np.nan
    row[-1] = 99
    assert largest(row, vectors) == np.nanmax([-np.inf, *row[: 16 * vectors]])
    assert largest(np.full(16, np.nan, np.float32), 1) == -np.inf


def test_weights_are_powers_of_two_of_what_a_logit_is_below_the_peak(rng, poisoned):
    row, out = (rng.standard_normal(64) * 20).astype(np.float32), poisoned(64)
    total = weights(np.float32(0), row, 4, FACTOR, PEAK, out)
    expected = np.exp2(FACTOR.astype(np.float64) * row - PEAK)
    np.testing.assert_allclose(out, expected, rtol=2e-6)
    np.testing.assert_allclose(total, expected.sum(), rtol=2e-6)


def test_what_is_hidden_weighs_nothing_and_nan_stays():
    row, out = np.zeros(16, np.float32), np.empty(16, np.float32)
    row[2], row[5] = -np.inf, -1e30
    assert weights(np.float32(0), row, 1, FACTOR, np.float32(0), out) == 14
    np.testing.assert_array_equal(out == 0, np.isin(np.arange(16), (2, 5)))
    row[7] = np.nan
    assert np.isnan(weights(np.float32(0), row, 1, FACTOR, np.float32(0), out))
    assert np.flatnonzero(np.isnan(out)).tolist() == [7]
