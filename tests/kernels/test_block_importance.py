from __future__ import annotations

import pytest
import torch

from moorage.kernels.block_importance import attention_lse, gpu, reference, token_importance

SHAPES = [
    (1, 1, 1, 1, 8),
    (2, 1, 3, 5, 8),
    (2, 3, 4, 17, 16),
    (4, 2, 1, 33, 32),
    (2, 2, 7, 0, 8),
    (1, 2, 24, 30, 8),
]
BANDS = [None, (0, 1 << 40), (0, 4), (4, 1 << 40)]


@pytest.mark.parametrize("band", BANDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("tile_bytes", "softcap"), [(1, 0.0), (1 << 20, 0.0), (1 << 20, 0.5)])
def test_matches_reference(shape, band, tile_bytes, softcap, monkeypatch):
    monkeypatch.setattr(gpu, "MAX_TILE_BYTES", tile_bytes)
    num_kv_heads, group, rows, count, dim = shape
    generator = torch.Generator().manual_seed(count)
    queries = torch.randn(num_kv_heads * group, rows, dim, generator=generator)
    keys = torch.randn(num_kv_heads, count, dim, generator=generator)
    for starts in ((0, 0), (9, 4), (3, 5)):
        lse = attention_lse(queries, keys, 0.3, band, *starts, softcap)
        expected = reference.attention_lse(queries, keys, 0.3, band, *starts, softcap)
        torch.testing.assert_close(lse.double(), expected, atol=1e-5, rtol=1e-5)
        found = token_importance(queries, keys, lse, 0.3, band, *starts, softcap)
        expected = reference.token_importance(queries, keys, lse, 0.3, band, *starts, softcap)
        torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


def test_each_query_and_head_gives_one():
    queries, keys = torch.randn(6, 5, 16), torch.randn(2, 40, 16)
    lse = attention_lse(queries, keys, 0.25, None)
    found = token_importance(queries, keys, lse, 0.25, None)
    torch.testing.assert_close(found.sum(1), torch.tensor([15.0, 15.0]))


def test_queries_that_see_no_key_of_a_tile_are_not_multiplied(monkeypatch):
    """A window far shorter than a prompt is: InfLLM counts what keys receive from the queries near them alone."""
    num_rows, window = 300, 8
    queries, keys = torch.randn(2, num_rows, 16), torch.randn(2, num_rows, 16)
    monkeypatch.setattr(gpu, "MAX_TILE_BYTES", 4 * 2 * num_rows * 20)  # 20 keys a tile
    lse = attention_lse(queries, keys, 0.25, (0, window))
    tiles = list(gpu._logits(queries, keys, 0.25, (0, window), 0, 0, 0.0))
    assert sum(logits[0].numel() for *_, logits in tiles) <= num_rows * (20 + window)
    found = token_importance(queries, keys, lse, 0.25, (0, window))
    torch.testing.assert_close(found.sum(1), torch.full((2,), float(num_rows)))
