from __future__ import annotations

import pytest
import torch

from moorage.kernels.rms_norm import gpu, norm_heads, reference, triton


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


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 64), (3, 6, 2, 96), (5, 4, 4, 128), (2, 16, 2, 256), (0, 2, 1, 64)]
)
def test_heads_by_the_weight_of_their_kind(rng, device, dtype, shape):
    num_tokens, num_heads, num_kv_heads, dim = shape
    heads = torch.from_numpy(rng.standard_normal((num_tokens, num_heads + 2 * num_kv_heads, dim))).to(dtype)
    weights = [torch.from_numpy(rng.standard_normal(dim)).to(dtype) for _ in range(2)]
    found, plain = heads.clone().to(device), heads.clone()
    triton.norm_heads(found, num_heads, *(weight.to(device) for weight in weights), 1e-5)
    norm_heads(plain, num_heads, *weights, 1e-5)
    expected = heads.double().numpy()
    reference.norm_heads(expected, num_heads, *(weight.double().numpy() for weight in weights), 1e-5)
    step = torch.finfo(dtype).eps
    for each in (found.cpu(), plain):
        torch.testing.assert_close(each.double(), torch.from_numpy(expected), rtol=4 * step, atol=step)
    values = num_heads + num_kv_heads
    torch.testing.assert_close(found.cpu()[:, values:], heads[:, values:], rtol=0, atol=0)
