from __future__ import annotations

import pytest
import torch

from moorage.kernels.rms_norm import gpu, reference, triton


@pytest.mark.parametrize("shape", [(1, 64), (3, 96), (2, 5, 128), (4, 1000), (0, 64)])
def test_matches_the_definition_and_rounds_as_torch_does(rng, device, dtype, shape):
    x, added = (torch.from_numpy(rng.standard_normal(shape)).to(dtype).to(device) for _ in range(2))
    weight = torch.from_numpy(rng.standard_normal(shape[-1:])).to(dtype).to(device)
    step = torch.finfo(dtype).eps
    found = triton.rms_norm(x, weight, 1e-5)
    torch.testing.assert_close(found, gpu.rms_norm(x, weight, 1e-5), rtol=2 * step, atol=step)
    wide = (tensor.double().cpu().numpy() for tensor in (x, weight))
    expected = torch.from_numpy(reference.rms_norm(*wide, 1e-5))
    torch.testing.assert_close(found.double().cpu(), expected, rtol=4 * step, atol=step)
    summed, apart = x.clone(), x.clone()
    found = triton.add_rms_norm(summed, added, weight, 1e-5)
    torch.testing.assert_close(found, gpu.add_rms_norm(apart, added, weight, 1e-5), rtol=4 * step, atol=step)
    # The interpreter cuts bf16 off where a GPU rounds it.
    torch.testing.assert_close(summed, apart, rtol=step if dtype == torch.bfloat16 else 0, atol=0)


def test_rows_that_are_slices_of_longer_ones(rng, device):
    whole = torch.from_numpy(rng.standard_normal((3, 9, 64))).float().to(device)
    weight = torch.ones(64, device=device)
    torch.testing.assert_close(
        triton.rms_norm(whole[:, 2:5], weight, 1e-6), gpu.rms_norm(whole[:, 2:5], weight, 1e-6)
    )
