from __future__ import annotations

import numpy as np
import pytest
from numba import njit

from moorage.kernels.half import from_storage
from moorage.kernels.simd_rows import rotate_rows


@njit
def rotate(stored, at, count, dim, cos, sin, turn_at, turn_step, half, out):
    rotate_rows(stored, at, count, dim, cos, sin, turn_at, turn_step, half, out)


@pytest.mark.parametrize("own_turns", [False, True])
@pytest.mark.parametrize(
    ("dim", "half", "count"), [(16, 0, 3), (16, 8, 1), (96, 24, 5), (64, 32, 0), (128, 64, 33)]
)
def test_rows_are_rotated_by_pairs_of_channels(rng, draw, poisoned, dim, half, count, own_turns):
    stored, out = draw(2 + count * dim), poisoned(count * dim)
    angles = rng.uniform(-4, 4, (count + 1, half))
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    step = half if own_turns else 0
    rotate(stored, 2, count, dim, cos.reshape(-1), sin.reshape(-1), half, step, half, out)
    rows = from_storage(stored[2:]).reshape(count, dim).astype(np.float64)
    at = 1 + np.arange(count) if own_turns else np.ones(count, np.int64)
    at = np.minimum(at, count)
    low, high = rows[:, :half], rows[:, half : 2 * half]
    expected = np.concatenate(
        (low * cos[at] - high * sin[at], high * cos[at] + low * sin[at], rows[:, 2 * half :]), axis=1
    )
    np.testing.assert_allclose(out.reshape(count, dim), expected, rtol=1e-5, atol=1e-5)
