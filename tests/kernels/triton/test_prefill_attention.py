from __future__ import annotations

import numpy as np
import pytest
import torch

from moorage.kernels.prefill_attention import reference, triton

CASES = [  # KV heads, group, queries, keys, head size, band, first query, first key
    (1, 1, 1, 1, 64, None, 0, 0),
    (2, 3, 33, 40, 96, (0, 1 << 62), 7, 0),
    (1, 4, 70, 65, 128, (0, 20), 30, 10),
    (1, 2, 20, 130, 256, None, 0, 0),
    (2, 1, 40, 90, 64, (16, 48), 64, 0),
    (1, 8, 17, 31, 64, (5, 9), 0, 3),
    (1, 2, 9, 20, 64, (0, 1 << 62), 0, 100),
]


@pytest.mark.parametrize("softcap", [0.0, 1.5])
@pytest.mark.parametrize("case", CASES)
def test_matches_reference(rng, device, multiplied, case, softcap):
    num_kv_heads, group, num_rows, num_keys, dim, band, q_start, k_start = case
    q, k, v = (
        torch.from_numpy(rng.standard_normal(shape)).to(multiplied)
        for shape in (
            (num_kv_heads * group, num_rows, dim),
            (num_kv_heads, num_keys, dim),
            (num_kv_heads, num_keys, dim),
        )
    )
    place = (dim**-0.5, band, q_start, k_start, softcap)
    expected = reference.attend_dense(q, k, v, *place)
    found = triton.attend_dense(*(tensor.to(device) for tensor in (q, k, v)), *place)
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[multiplied]
    for actual, wanted in zip(found, expected, strict=True):
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual.double().cpu(), wanted, rtol=tolerance, atol=tolerance)


def test_parts_of_a_longer_row_of_keys_and_none_at_all(rng, device):
    q, k = (torch.from_numpy(rng.standard_normal((2, 30, 64))).float().to(device) for _ in range(2))
    part = triton.attend_dense(q, k[:, 5:20], k[:, 5:20], 0.1, (0, 9), 12, 5)
    copied = triton.attend_dense(q, k[:, 5:20].contiguous(), k[:, 5:20].contiguous(), 0.1, (0, 9), 12, 5)
    torch.testing.assert_close(part, copied, rtol=0, atol=0)
    out, lse = triton.attend_dense(q, k[:, :0], k[:, :0], 0.1)
    assert (out == 0).all()
    assert (lse == -np.inf).all()
