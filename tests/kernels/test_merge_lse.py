from __future__ import annotations

import numpy as np
import pytest
import torch

from moorage.kernels.merge_lse import merge_lse, reference


@pytest.mark.parametrize("shape", [(1,), (4, 7), (3, 0), (2, 3, 5)])
@pytest.mark.parametrize("parts", [1, 2, 9])
@pytest.mark.parametrize("dim", [16, 96])
def test_matches_reference(rng, parts, shape, dim):
    outs = rng.standard_normal((parts, *shape, dim))
    lses = 50 * rng.standard_normal((parts, *shape))
    empty = rng.random((parts, *shape)) < 0.4
    lses[empty], outs[empty] = -np.inf, np.nan
    out, lse = merge_lse(torch.from_numpy(outs).float(), torch.from_numpy(lses).float())
    expected_out, expected_lse = reference.merge_lse(outs, lses)
    np.testing.assert_allclose(out, expected_out, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-6)


def test_parts_of_a_softmax_join_to_the_whole(rng):
    logits, values = (
        torch.from_numpy(rng.standard_normal((3, 40)) * 5),
        torch.from_numpy(rng.standard_normal((40, 8))),
    )
    pieces = [slice(0, 1), slice(1, 1), slice(1, 23), slice(23, 40)]
    outs = torch.stack([torch.softmax(logits[:, piece], dim=1) @ values[piece] for piece in pieces])
    lses = torch.stack([torch.logsumexp(logits[:, piece], dim=1) for piece in pieces])
    out, lse = merge_lse(outs, lses)
    torch.testing.assert_close(out.double(), torch.softmax(logits, dim=1) @ values, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(lse.double(), torch.logsumexp(logits, dim=1), rtol=1e-6, atol=1e-6)


def test_refuses_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="outs"):
        merge_lse(torch.zeros(2, 3, 4), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="outs"):
        merge_lse(torch.zeros(0, 3, 4), torch.zeros(0, 3))
