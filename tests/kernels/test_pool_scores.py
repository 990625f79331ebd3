from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from moorage.kernels.pool_scores import pool_scores, reference, score_lse

POOLINGS = ["softmax", "sum", "max"]
SHAPES = [  # queries, KV heads, group, blocks
    (1, 1, 1, 0),
    (1, 1, 1, 1),
    (2, 2, 3, 5),
    (3, 1, 8, 511),
    (1, 3, 16, 512),
    (2, 4, 1, 513),
    (4, 8, 4, 9000),
]


def draw_scores(rng, shape):
    rows, num_kv_heads, group, count = shape
    scores = (20 * rng.standard_normal((rows, num_kv_heads * group, count))).astype(np.float32)
    limits = rng.integers(0, count + 1, rows).astype(np.int32)
    limits[0] = count
    return scores, limits


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_reference(rng, poisoned, shape, pooling, shared):
    scores, limits = draw_scores(rng, shape)
    actual = poisoned((shape[0], 1 if shared else shape[1], shape[3]))
    expected = actual.copy()
    pool_scores(scores, shape[1], shared, 0.25, limits, actual, pooling)
    reference.pool_scores(scores, shape[1], shared, 0.25, limits, expected, pooling)
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=1e-5 if pooling == "sum" else 1e-30)


@pytest.mark.parametrize("shape", SHAPES)
def test_lse_matches_reference(rng, poisoned, shape):
    scores, limits = draw_scores(rng, shape)
    actual = poisoned(scores.shape[:2])
    expected = actual.copy()
    score_lse(scores, 0.25, limits, actual)
    reference.score_lse(scores, 0.25, limits, expected)
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)


def test_shards_with_their_common_lse_pool_as_one(rng, poisoned):
    scores, limits = draw_scores(rng, (1, 2, 2, 90))
    whole, lse = poisoned((1, 2, 90)), poisoned((1, 4))
    pool_scores(scores, 2, False, 0.1, limits, whole)
    score_lse(scores, 0.1, limits, lse)
    for begin, end in ((0, 40), (40, 90)):
        shard = np.ascontiguousarray(scores[:, :, begin:end])
        part = poisoned((1, 2, end - begin))
        pool_scores(shard, 2, False, 0.1, np.array([end - begin], np.int32), part, lse=lse)
        np.testing.assert_allclose(part, whole[:, :, begin:end], rtol=1e-5)


@given(arrays.arrays(np.float32, (1, 4, 7), elements=st.floats(-1000, 1000, width=32)), st.integers(1, 7))
def test_softmax_sums_to_one(scores, limit):
    out = np.full((1, 1, 7), np.nan, np.float32)
    pool_scores(scores, 2, True, 1.0, np.array([limit], np.int32), out)
    assert out[0, 0, :limit].sum() == pytest.approx(1, abs=1e-4)
    assert (out[0, 0, limit:] == -np.inf).all()


def test_refuses_what_does_not_fit():
    scores, out = np.zeros((1, 4, 3), np.float32), np.zeros((1, 2, 3), np.float32)
    with pytest.raises(ValueError, match="limits"):
        pool_scores(scores, 2, False, 1.0, np.array([4], np.int32), out)
    with pytest.raises(ValueError, match="pooling"):
        pool_scores(scores, 2, False, 1.0, np.array([3], np.int32), out, "mean")
    with pytest.raises(ValueError, match="out"):
        pool_scores(scores, 2, True, 1.0, np.array([3], np.int32), out)
    with pytest.raises(ValueError, match="query heads"):
        pool_scores(scores, 3, True, 1.0, np.array([3], np.int32), out)
