from __future__ import annotations

import numpy as np
import pytest

from moorage.kernels.vector_math import exp32, extremes32, max32


def test_exp_is_as_good_as_float32(rng):
    for x in rng.uniform(-87, 88, 500).astype(np.float32):
        assert exp32(x) == pytest.approx(np.exp(np.float64(x)), rel=3e-7)


def test_exp_of_the_extremes():
    assert exp32(np.float32(0)) == 1
    assert exp32(np.float32(-np.inf)) == 0
    assert exp32(np.float32(-1000)) == 0
    assert np.isfinite(exp32(np.float32(np.inf)))
    assert np.isnan(exp32(np.float32(np.nan)))


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 100])
def test_max_passes_over_nan(rng, size):
    row = rng.standard_normal(size).astype(np.float32)
    assert max32(row) == row.max(initial=-np.inf)
    row[::2] = np.nan
    assert max32(row) == row[1::2].max(initial=-np.inf)


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 300])
def test_extremes_pass_over_nan(rng, size):
    row = rng.standard_normal(size).astype(np.float32)
    assert extremes32(row) == (row.min(initial=np.inf), row.max(initial=-np.inf))
    row[::2] = np.nan
    assert extremes32(row) == (row[1::2].min(initial=np.inf), row[1::2].max(initial=-np.inf))
