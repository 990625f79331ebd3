from __future__ import annotations

import numpy as np
import pytest
import torch

from moorage.kernels.block_gather import reference, triton
from moorage.kernels.triton_support import upload

SHAPES = [
    (1, 1, 16, 64),
    (3, 2, 17, 96),
    (2, 8, 32, 128),
]  # pages more than pieces, KV heads, block size, head size


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [0, 1, 5])
@pytest.mark.parametrize("chunk", [64, 4096])
def test_whole_blocks_and_single_heads(rng, device, dtype, monkeypatch, shape, count, chunk):
    monkeypatch.setattr(triton, "CHUNK_WORDS", chunk)
    spare, num_heads, size, dim = shape
    stored = torch.from_numpy(rng.standard_normal((count + spare, 2, num_heads, size, dim))).to(dtype)
    out = torch.zeros((count + 2, *stored.shape[1:]), dtype=dtype)
    if device.type == "cuda":
        stored = stored.pin_memory()
    pages, slots, heads = (
        rng.permutation(len(stored))[:count].astype(np.int32),
        rng.permutation(len(out))[:count].astype(np.int32),
        rng.integers(0, num_heads, count).astype(np.int32),
    )
    there = upload((pages, slots, heads), device)
    whole, single = out.clone().to(device), out.clone().to(device)
    triton.gather_pieces(stored, there[0], whole, there[1])
    triton.gather_pieces(stored, there[0], single, there[1], there[2])
    expected = out.double().numpy()
    reference.gather_blocks(stored.double().numpy(), pages, expected, slots)
    np.testing.assert_array_equal(whole.double().cpu(), expected)
    only = np.zeros_like(expected)
    for slot, head in zip(slots, heads, strict=True):
        only[slot, :, head] = expected[slot, :, head]
    np.testing.assert_array_equal(single.double().cpu(), only)
