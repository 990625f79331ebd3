from __future__ import annotations

import numpy as np
import pytest
import torch

from moorage.kernels.decode_inputs import reference, triton

CASES = [  # rows, query heads, head size, rotated channels, variants
    (1, 1, 64, 64, 1),
    (3, 6, 96, 48, 2),
    (2, 8, 128, 128, 3),
    (4, 4, 256, 0, 1),
    (0, 2, 64, 64, 1),
]


@pytest.mark.parametrize("case", CASES)
def test_queries_in_every_variant(rng, dtype, device, case):
    num_rows, num_heads, dim, rotated, variants = case
    # As a layer brings them: the first heads of longer rows.
    longer = torch.from_numpy(rng.standard_normal((num_rows, num_heads + 2, dim))).to(dtype)
    angle = rng.uniform(-7, 7, (num_rows, variants, rotated // 2))
    turns = (torch.from_numpy(turn(angle)).float().to(device) for turn in (np.cos, np.sin))
    found = triton.turn_queries(longer.to(device)[:, :num_heads], *turns)
    expected = reference.turn_queries(longer[:, :num_heads].double().numpy(), np.cos(angle), np.sin(angle))
    np.testing.assert_allclose(found.cpu(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("slot", "row"), [(0, 0), (1, 16), (3, 5)])
@pytest.mark.parametrize("dim", [64, 96])
def test_a_row_lands_in_its_slot_and_nowhere_else(rng, dtype, device, slot, row, dim):
    slots = torch.from_numpy(rng.standard_normal((4, 2, 3, 17, dim))).to(dtype)
    key, value = (torch.from_numpy(rng.standard_normal((3, dim))).to(dtype) for _ in range(2))
    there = slots.clone().to(device)
    triton.store_row(key.to(device), value.to(device), there, slot, row)
    expected = slots.double().numpy()
    reference.store_row(key.double().numpy(), value.double().numpy(), expected, slot, row)
    np.testing.assert_array_equal(there.double().cpu(), expected)
