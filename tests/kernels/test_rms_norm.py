from __future__ import annotations

import numpy as np
import pytest
import torch

from moorage.kernels.numba_flags import always_parallel
from moorage.kernels.rms_norm import add_rms_norm, reference, rms_norm

EPS = 1e-5


def drawn(rng, *shape):
    return torch.from_numpy(rng.standard_normal(shape).astype(np.float32) * 3)


def check(found, x, weight):
    expected = reference.rms_norm(x.double().numpy(), weight.double().numpy(), EPS)
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(0, 64), (1, 1), (1, 256), (3, 65), (7, 2, 64), (300, 256)])
def test_equals_the_definition(rng, shape):
    x, weight = drawn(rng, *shape), drawn(rng, shape[-1])
    kept = x.clone()
    check(rms_norm(x, weight, EPS), x, weight)
    assert torch.equal(x, kept)


@pytest.mark.parametrize("rows", [0, 1, 2, 33])
def test_adds_in_place_before_the_norm(rng, rows):
    x, added, weight = drawn(rng, rows, 96), drawn(rng, rows, 96), drawn(rng, 96)
    summed = x + added
    check(add_rms_norm(x, added, weight, EPS), summed, weight)
    assert torch.equal(x, summed)


def test_heads_of_a_wider_tensor(rng):
    whole, weight = drawn(rng, 5, 6, 64), drawn(rng, 64)
    part = whole[:, 1:4]
    check(rms_norm(part, weight, EPS), part, weight)


def test_several_threads_write_the_same(rng):
    x, weight = drawn(rng, 101, 128), drawn(rng, 128)
    alone = rms_norm(x, weight, EPS)
    with always_parallel():
        assert torch.equal(rms_norm(x, weight, EPS), alone)


def test_sizes_that_do_not_fit_are_refused(rng):
    with pytest.raises(ValueError, match="weight"):
        rms_norm(drawn(rng, 2, 64), drawn(rng, 65), EPS)
    with pytest.raises(ValueError, match="added"):
        add_rms_norm(drawn(rng, 2, 64), drawn(rng, 1, 64), drawn(rng, 64), EPS)


@pytest.mark.parametrize("rows", [1, 2, 33])
def test_bfloat16_rounds_as_torch_does(rng, rows):
    x, added = drawn(rng, rows, 96).bfloat16(), drawn(rng, rows, 96).bfloat16()
    weight, summed = drawn(rng, 96), x + added
    wide = summed.float()
    normed = (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)).bfloat16()
    expected = (weight * normed).bfloat16()
    found = add_rms_norm(x, added, weight, EPS)
    assert found.dtype == torch.bfloat16
    assert torch.equal(x, summed)
    # The scale may differ in its last bit, and with it one rounding to bfloat16 in some hundred.
    torch.testing.assert_close(found, expected, rtol=2**-7, atol=0)
    assert (found == expected).float().mean() > 0.95
