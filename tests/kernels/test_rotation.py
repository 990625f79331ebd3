from __future__ import annotations

import numpy as np
import pytest

from moorage.kernels.rotation import rotate_heads


@pytest.mark.parametrize(("heads", "dim", "half"), [(1, 2, 1), (4, 64, 32), (3, 96, 24), (2, 16, 0)])
def test_channels_turn_in_pairs(rng, heads, dim, half):
    x, angles = rng.standard_normal((heads, dim)).astype(np.float32), rng.uniform(-7, 7, half)
    out = rotate_heads(x, np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32))
    turned = (x[:, :half] + 1j * x[:, half : 2 * half]) * np.exp(1j * angles)
    np.testing.assert_allclose(out[:, :half], turned.real, atol=1e-5)
    np.testing.assert_allclose(out[:, half : 2 * half], turned.imag, atol=1e-5)
    np.testing.assert_array_equal(out[:, 2 * half :], x[:, 2 * half :])


def test_refuses_angles_that_do_not_fit():
    with pytest.raises(ValueError, match="do not fit"):
        rotate_heads(np.zeros((1, 4), np.float32), np.zeros(3, np.float32), np.zeros(3, np.float32))
