from __future__ import annotations

import numpy as np
import pytest
import torch

from moorage.kernels.decode_inputs import reference, triton

CASES = [  # query heads, KV heads, head size, rotated channels, variants, slot, row
    (1, 1, 64, 64, 1, 0, 0),
    (6, 2, 96, 48, 2, 3, 5),
    (8, 1, 128, 128, 3, 1, 16),
    (4, 4, 256, 0, 1, 2, 7),
    (4, 2, 64, 64, 3, -1, 4),
]


def drawn(rng, num_heads, num_kv_heads, dim, rotated, variants, dtype):
    """q, k, v as a layer brings them, side by side in one row; and angles."""
    row = torch.from_numpy(rng.standard_normal((num_heads + 2 * num_kv_heads, dim))).to(dtype)
    return row.split((num_heads, num_kv_heads, num_kv_heads)), rng.uniform(-7, 7, (variants, rotated // 2))


def check(device, heads, angle, slots, slot, row):
    there = slots.clone().to(device)
    turns = [torch.from_numpy(turn(angle)).float().to(device) for turn in (np.cos, np.sin)]
    found = triton.decode_inputs(*(part.to(device) for part in heads), *turns, there, slot, row)
    # Of what has been rounded to the stored type already.
    query, *rows = heads
    wide = [query.double().numpy(), *(part.to(slots.dtype).double().numpy() for part in rows)]
    expected_slots = slots.double().numpy()
    expected = reference.decode_inputs(*wide, np.cos(angle), np.sin(angle), expected_slots, slot, row)
    for part, wanted, kind in zip(found, expected, (torch.float32, torch.float32, slots.dtype), strict=True):
        assert part.dtype == kind
        np.testing.assert_allclose(part.double().cpu(), wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(there.double().cpu(), expected_slots)
    alone = triton.turn_query(heads[0].to(device), *turns)
    np.testing.assert_array_equal(alone.cpu(), found[1].cpu())


@pytest.mark.parametrize("stored", [torch.float16, torch.float32], ids=["fp16 slots", "fp32 slots"])
@pytest.mark.parametrize("case", CASES)
def test_edges(rng, dtype, device, case, stored):
    num_heads, num_kv_heads, dim, rotated, variants, slot, row = case
    heads, angle = drawn(rng, num_heads, num_kv_heads, dim, rotated, variants, dtype)
    slots = torch.from_numpy(rng.standard_normal((4, 2, num_kv_heads, 17, dim))).to(stored)
    check(device, heads, angle, slots, slot, row)


def test_random_shapes(rng, device):
    for _ in range(20):
        num_kv_heads, group, size = (int(rng.integers(1, high)) for high in (5, 9, 40))
        dim = int(rng.choice([64, 96, 128, 256]))
        rotated = int(rng.integers(0, dim // 2 + 1)) * 2
        heads, angle = drawn(
            rng, num_kv_heads * group, num_kv_heads, dim, rotated, int(rng.integers(1, 4)), torch.float16
        )
        slots = torch.from_numpy(rng.standard_normal((3, 2, num_kv_heads, size, dim))).half()
        slot, row = int(rng.integers(-1, 3)), int(rng.integers(size))
        check(device, heads, angle, slots, slot, row)
