from __future__ import annotations

import numpy as np
import pytest
import torch

from moorage.kernels.numba_flags import always_parallel
from moorage.kernels.rotation import rotate_each, rotate_heads, rotate_tokens


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("tokens", "turns", "half"), [(1, 1, 8), (7, 7, 16), (7, 1, 12), (5, 5, 0), (0, 0, 4)]
)
def test_tokens_turn_like_their_heads(rng, dtype, tokens, turns, half):
    x = torch.from_numpy(rng.standard_normal((tokens, 3, 32)).astype(np.float32)).to(dtype).transpose(0, 1)
    angles = rng.uniform(0, 6, (turns, half)).astype(np.float32)
    cos, sin = torch.from_numpy(np.cos(angles)), torch.from_numpy(np.sin(angles))
    found = rotate_tokens(x, cos, sin)
    assert found.shape == x.shape
    assert found.dtype == dtype
    for t in range(tokens):
        turn = t if turns > 1 else 0
        heads = np.ascontiguousarray(x[:, t].float().numpy())
        expected = torch.from_numpy(rotate_heads(heads, cos[turn].numpy(), sin[turn].numpy()))
        tolerance = 2**-8 if dtype == torch.bfloat16 else 1e-6
        torch.testing.assert_close(found[:, t].float(), expected, rtol=tolerance, atol=1e-6)


def test_threads_turn_tokens_alike(rng):
    x = torch.from_numpy(rng.standard_normal((2, 33, 16)).astype(np.float32))
    cos, sin = torch.from_numpy(rng.standard_normal((2, 33, 4)).astype(np.float32))
    alone = rotate_tokens(x, cos, sin)
    with always_parallel():
        assert torch.equal(rotate_tokens(x, cos, sin), alone)


def test_turns_that_do_not_fit_are_refused():
    x = torch.zeros(2, 5, 16)
    with pytest.raises(ValueError, match="do not fit"):
        rotate_tokens(x, torch.zeros(4, 4), torch.zeros(4, 4))


def test_each_item_turns_by_its_own_angles(rng):
    x, angles = rng.standard_normal((3, 4, 32)).astype(np.float32), rng.uniform(-7, 7, (3, 8))
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    expected = [rotate_heads(x[i], cos[i], sin[i]) for i in range(3)]
    np.testing.assert_array_equal(rotate_each(x, cos, sin), expected)
    with pytest.raises(ValueError, match="do not fit"):
        rotate_each(x, cos[:2], sin[:2])
