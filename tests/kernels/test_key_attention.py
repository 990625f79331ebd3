"""Exact logits and attention of single keys, against their definitions in fp64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moorage.kernels.key_attention import attend_keys, key_logits, reference


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("softcap", [0.0, 3.0])
@pytest.mark.parametrize("num_variants", [1, 3])
@pytest.mark.parametrize(("heads", "count", "dim", "pairs"), [(1, 5, 16, 8), (2, 7, 24, 4), (3, 0, 8, 4)])
def test_logits_match_the_reference(
    rng: np.random.Generator,
    dtype: torch.dtype,
    softcap: float,
    num_variants: int,
    heads: int,
    count: int,
    dim: int,
    pairs: int,
) -> None:
    keys = torch.from_numpy(rng.standard_normal((heads, count, dim))).to(dtype)
    queries = rng.standard_normal((num_variants, 2 * heads, dim)).astype(np.float32)
    variant = rng.integers(0, num_variants, (heads, count))
    angles = np.exp(1j * rng.uniform(-9, 9, (heads, count, pairs)))
    for turns in (None, angles):
        found = key_logits(
            torch.from_numpy(queries),
            keys,
            variant=torch.from_numpy(variant),
            turns=None if turns is None else torch.from_numpy(turns).to(torch.complex64),
            scale=0.3,
            softcap=softcap,
        )
        expected = reference.key_logits(
            queries, keys.double().numpy(), variant=variant, turns=turns, scale=0.3, softcap=softcap
        )
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_attention_over_some_keys_matches_the_reference(rng: np.random.Generator) -> None:
    logits = rng.standard_normal((3, 2, 9))
    is_there = rng.random((3, 9)) < 0.6
    is_there[0, 0], is_there[1] = True, False
    values = rng.standard_normal((3, 9, 8))
    out, lse = attend_keys(
        torch.from_numpy(logits).float(), torch.from_numpy(is_there), torch.from_numpy(values)
    )
    expected, expected_lse = reference.attend_keys(logits, is_there, values)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-5)
    assert (lse[2:4] == -np.inf).all()
    assert (out[2:4] == 0).all()


def test_without_a_key_nothing_is_attended() -> None:
    none = torch.zeros((2, 3, 0)), torch.zeros((2, 0), dtype=torch.bool)
    out, lse = attend_keys(*none, torch.zeros((2, 0, 8)))
    assert out.shape == (6, 8)
    assert (lse == -np.inf).all()
