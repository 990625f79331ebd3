from __future__ import annotations

import numpy as np
import pytest

from moorage.kernels.hadamard import hadamard_matrix, turn_heads

DIMS = [1, 2, 24, 32, 64, 80, 96, 128, 256]


@pytest.mark.parametrize("dim", DIMS)
def test_matrix_is_orthogonal_and_its_own_inverse(dim):
    matrix = hadamard_matrix(dim)
    np.testing.assert_allclose(matrix @ matrix, np.eye(dim), atol=1e-12)
    np.testing.assert_array_equal(matrix, matrix.T)


def test_a_head_size_that_is_no_power_of_two_is_turned_in_runs():
    single = np.eye(96)[40]
    turned = single @ hadamard_matrix(96)
    assert np.flatnonzero(turned).tolist() == list(range(32, 64))


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("count", [0, 1, 7])
def test_kernel_multiplies_by_the_matrix(rng, dim, count):
    heads = rng.standard_normal((count, dim), np.float32)
    expected = heads.astype(np.float64) @ hadamard_matrix(dim)
    turn_heads(heads)
    np.testing.assert_allclose(heads, expected, rtol=1e-5, atol=1e-5)
