from __future__ import annotations

import numpy as np
import pytest
import torch

from moorage.kernels.merge_lse import reference, triton


@pytest.mark.parametrize("shape", [(1,), (4, 7), (3, 0), (2, 3, 5)])
@pytest.mark.parametrize("parts", [1, 2, 9])
@pytest.mark.parametrize("dim", [64, 96])
def test_matches_reference(rng, device, parts, shape, dim):
    outs = rng.standard_normal((parts, *shape, dim))
    lses = 50 * rng.standard_normal((parts, *shape))
    empty = rng.random((parts, *shape)) < 0.4
    lses[empty], outs[empty] = -np.inf, np.nan
    out, lse = triton.merge_lse(*(torch.from_numpy(part).float().to(device) for part in (outs, lses)))
    expected_out, expected_lse = reference.merge_lse(outs, lses)
    np.testing.assert_allclose(out.cpu(), expected_out, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(lse.cpu(), expected_lse, rtol=1e-6)
