from __future__ import annotations

import numpy as np
import pytest
import torch

from moorage.kernels.decode_inputs import reference, triton

CASES = [  # rows, query heads, KV heads, head size, rotated channels, variants
    (1, 1, 1, 64, 64, 1),
    (3, 6, 2, 96, 48, 2),
    (2, 8, 1, 128, 128, 3),
    (4, 4, 4, 256, 0, 1),
    (0, 2, 1, 64, 64, 1),
]


@pytest.mark.parametrize("case", CASES)
def test_matches_reference(rng, device, dtype, case):
    num_rows, num_heads, num_kv_heads, dim, rotated, variants = case
    heads = torch.from_numpy(rng.standard_normal((num_rows, num_heads + 2 * num_kv_heads, dim))).to(dtype)
    angle = rng.uniform(-7, 7, (num_rows, variants, rotated // 2))
    slots = torch.zeros((num_rows + 2, 2, num_kv_heads, 16, dim), dtype=dtype)
    slot = rng.permutation(num_rows + 2)[:num_rows].astype(np.int32)
    slot[num_rows // 2 :][:1] = -1
    row = rng.integers(0, 16, num_rows).astype(np.int32)
    there = slots.to(device)
    queries = triton.turn_and_store(
        heads.to(device),
        num_kv_heads,
        *(torch.from_numpy(turn(angle)).float().to(device) for turn in (np.cos, np.sin)),
        there,
        *(torch.from_numpy(part).to(device) for part in (slot, row)),
    )
    stored = slots.double().numpy()
    expected = reference.turn_and_store(
        heads.double().numpy(), num_kv_heads, np.cos(angle), np.sin(angle), stored, slot, row
    )
    np.testing.assert_allclose(queries.cpu(), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(there.double().cpu(), stored)
