from __future__ import annotations

import numpy as np
import pytest

from moorage.kernels.block_anchors import build_anchors
from moorage.kernels.block_score import reference, score_blocks
from moorage.kernels.half import from_storage

SHAPES = [  # KV heads, group, head size, sub-blocks, queries, blocks
    (1, 1, 16, 1, 1, 0),
    (1, 1, 16, 1, 1, 1),
    (2, 2, 32, 1, 3, 3),
    (3, 3, 64, 2, 1, 4),
    (2, 4, 96, 1, 1, 5),
    (4, 5, 128, 3, 2, 31),
    (1, 6, 256, 1, 1, 32),
    (2, 7, 64, 4, 1, 33),
    (8, 8, 128, 1, 1, 65),
    (2, 16, 32, 8, 5, 40),
    (5, 1, 128, 1, 1, 100),
]


def anchors_for(draw, num_pages, num_kv_heads, num_subs, dim, quest):
    """Anchors of random keys, so that bounds are true bounds."""
    kv = draw(num_pages, 2, num_kv_heads, 2 * num_subs, dim)
    anchors = np.zeros((num_pages, num_kv_heads, num_subs * (2 if quest else 1), dim), kv.dtype)
    build_anchors(kv, anchors, np.arange(num_pages, dtype=np.int32), "bounds" if quest else "mean")
    return anchors


def plain_float32(anchors, pages, queries, quest):
    """The same in plain numpy, adding one float32 after the other: the error that a float32 sum may have."""
    vectors = np.repeat(from_storage(anchors[pages]), queries.shape[1] // anchors.shape[1], axis=1)
    products = queries[:, :, None, None] * vectors.transpose(1, 0, 2, 3)
    if quest:
        products = np.maximum(products[..., ::2, :], products[..., 1::2, :])
    return products.cumsum(axis=-1)[..., -1].max(axis=-1)


def check(rng, draw, poisoned, shape, num_pages, quest):
    num_kv_heads, group, dim, num_subs, rows, count = shape
    anchors = anchors_for(draw, num_pages, num_kv_heads, num_subs, dim, quest)
    pages = rng.permutation(num_pages)[:count].astype(np.int32)
    queries = rng.standard_normal((rows, num_kv_heads * group, dim)).astype(np.float32)
    actual = poisoned((rows, num_kv_heads * group, count))
    expected = np.zeros(actual.shape, np.float64)
    score_blocks(anchors, pages, queries, quest, actual)
    reference.score_blocks(anchors, pages, queries, quest, expected)
    error = np.abs(plain_float32(anchors, pages, queries, quest) - expected).max(initial=0)
    assert np.abs(actual - expected).max(initial=0) <= 2 * error + 1e-6


@pytest.mark.parametrize("quest", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_sums_match_reference(rng, draw, poisoned, shape, quest):
    num_kv_heads, group, dim, num_subs, rows, count = shape
    anchors = anchors_for(draw, count + 2, num_kv_heads, num_subs, dim, quest)
    pages = rng.permutation(count + 2)[:count].astype(np.int32)
    queries = rng.standard_normal((rows, num_kv_heads * group, dim)).astype(np.float32)
    actual = poisoned((rows, num_kv_heads * group, count))
    expected = np.zeros(actual.shape, np.float64)
    score_blocks(anchors, pages, queries, quest, actual, add=True)
    reference.score_blocks(anchors, pages, queries, quest, expected, add=True)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("quest", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_reference(rng, draw, poisoned, shape, quest):
    check(rng, draw, poisoned, shape, shape[-1] + 2, quest)


@pytest.mark.parametrize("quest", [False, True])
def test_large_scores_take_the_parallel_path(rng, draw, poisoned, quest):
    check(rng, draw, poisoned, (4, 4, 128, 1, 2, 801), 900, quest)


def test_bound_is_never_below_the_best_key(rng, draw, poisoned, storage):
    kv = draw(20, 2, 2, 16, 64)
    anchors, pages = np.zeros((20, 2, 4, 64), storage), np.arange(20, dtype=np.int32)
    build_anchors(kv, anchors, pages, "bounds")
    queries, bounds = rng.standard_normal((1, 6, 64)).astype(np.float32), poisoned((1, 6, 20))
    score_blocks(anchors, pages, queries, True, bounds)
    keys = np.repeat(from_storage(kv[:, 0]), 3, axis=1)
    best = np.einsum("hd,phtd->hpt", queries[0], keys).max(axis=-1)
    assert (bounds[0] >= best - 1e-4).all()


def test_nan_query_gives_nan(draw, poisoned):
    queries, out = np.full((1, 2, 32), np.nan, np.float32), poisoned((1, 2, 5))
    out[:] = 0
    score_blocks(draw(5, 2, 2, 32), np.arange(5, dtype=np.int32), queries, False, out)
    assert np.isnan(out).all()


def test_refuses_what_does_not_fit():
    anchors, pages = np.zeros((4, 2, 3, 32), np.uint16), np.array([0, 3], np.int32)
    queries, out = np.zeros((1, 4, 32), np.float32), np.zeros((1, 4, 2), np.float32)
    with pytest.raises(ValueError, match="anchor vectors"):
        score_blocks(anchors, pages, queries, True, out)
    with pytest.raises(ValueError, match="pages"):
        score_blocks(anchors[:3], pages, queries, False, out)
    with pytest.raises(ValueError, match="out"):
        score_blocks(anchors, pages, queries, False, out[:, :3].copy())
    with pytest.raises(ValueError, match="query heads"):
        score_blocks(anchors, pages, queries[:, :3].copy(), False, out[:, :3].copy())
    with pytest.raises(ValueError, match="head size"):
        score_blocks(np.zeros((4, 2, 3, 20), np.uint16), pages, np.zeros((1, 4, 20), np.float32), False, out)
