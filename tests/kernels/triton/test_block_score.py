from __future__ import annotations

import numpy as np
import pytest
import torch

from moorage.kernels.block_score import reference, triton
from moorage.kernels.half import from_storage
from tests.kernels.test_block_score import anchors_for

SHAPES = [  # KV heads, group, head size, sub-blocks, queries, blocks
    (1, 1, 64, 1, 1, 0),
    (2, 3, 96, 2, 1, 1),
    (1, 4, 128, 1, 2, 65),
    (2, 8, 64, 4, 1, 33),
    (1, 7, 256, 1, 1, 70),
]


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("quest", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_reference(rng, draw, device, shape, quest, add):
    num_kv_heads, group, dim, num_subs, rows, count = shape
    anchors = anchors_for(draw, count + 2, num_kv_heads, num_subs, dim, quest)
    pages = rng.permutation(count + 2)[:count].astype(np.int32)
    queries = rng.standard_normal((rows, num_kv_heads * group, dim)).astype(np.float32)
    expected = np.zeros((*queries.shape[:2], count), np.float64)
    reference.score_blocks(anchors, pages, queries, quest, expected, add=add)
    stored = torch.from_numpy(from_storage(anchors))
    if anchors.dtype == np.uint16:
        stored = stored.half()
    found = triton.score_blocks(
        *(tensor.to(device) for tensor in (stored, torch.from_numpy(pages), torch.from_numpy(queries))),
        quest,
        add=add,
    )
    np.testing.assert_allclose(found.cpu(), expected, rtol=1e-5, atol=1e-4)
