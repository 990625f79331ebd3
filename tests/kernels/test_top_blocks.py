from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from moorage.kernels.top_blocks import reference, top_blocks


def check(scores, limits, k):
    shape = (len(scores), k)
    ids, top = np.full(shape, -7, np.int32), np.full(shape, np.nan, np.float32)
    expected_ids, expected_top = ids.copy(), top.copy()
    counts = top_blocks(scores, limits, k, ids, top)
    expected_counts = reference.top_blocks(scores, limits, k, expected_ids, expected_top)
    np.testing.assert_array_equal(counts, expected_counts)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_array_equal(top, expected_top)


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 64, 1000])
@pytest.mark.parametrize("k", [0, 1, 2, 31, 32, 33, 200])
@pytest.mark.parametrize("rows", [0, 1, 4])
def test_matches_reference(rng, rows, count, k):
    limits = rng.integers(0, count + 1, rows).astype(np.int32)
    limits[:1] = count
    check(rng.standard_normal((rows, count)).astype(np.float32), limits, k)


TIES = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.integers(0, 80)),
    elements=st.sampled_from([-np.inf, -1, 0, 2]),
)


@given(TIES, st.integers(0, 40))
def test_lower_id_wins_a_tie(scores, k):
    check(scores, np.full(len(scores), scores.shape[1], np.int32), k)


@pytest.mark.parametrize("order", [1, -1])
def test_sorted_rows(order):
    scores = np.arange(5000, dtype=np.float32)[None, ::order].copy()
    check(scores, np.array([5000], np.int32), 96)


@pytest.mark.parametrize("k", [1, 2, 96, 700, 1499, 1500, 1600])
@pytest.mark.parametrize(
    "kind", ["normal", "outlier", "ties", "equal", "tiny", "huge", "infinite", "nan", "far"]
)
def test_long_rows_of_any_spread(rng, kind, k):
    scores = rng.standard_normal((3, 1500)).astype(np.float32)
    if kind == "outlier":
        scores[:, 700] = 1e9
    elif kind == "ties":
        scores = np.round(scores)
    elif kind == "equal":
        scores[:] = 0.5
    elif kind == "tiny":
        scores *= np.float32(1e-42)
    elif kind == "huge":
        scores = np.clip(scores, -3, 3) * np.float32(1e38)
    elif kind in ("infinite", "nan"):
        scores[0, 3], scores[1, 4], scores[2, :9] = (
            (np.inf, -np.inf, np.inf) if kind == "infinite" else [np.nan] * 3
        )
    elif kind == "far":
        scores = scores * np.float32(1e-3) + np.float32(1e4)
    check(scores, np.array([1500, 1100, 1499], np.int32), k)


@given(st.integers(0, 2**32 - 1), st.integers(1, 300), st.integers(1, 40))
def test_long_rows_with_few_values(seed, k, num_values):
    values = np.random.default_rng(seed).integers(0, num_values, (1, 1200)).astype(np.float32)
    check(values, np.array([1200], np.int32), k)


def test_large_batches_take_the_parallel_path(rng):
    scores = rng.standard_normal((40, 30_000)).astype(np.float32)
    check(scores, rng.integers(0, 30_000, 40).astype(np.int32), 50)


def test_nan_is_never_chosen():
    scores = np.array([[np.nan, 1, np.nan, 3, 2, np.nan]], np.float32)
    ids, top = np.zeros((1, 4), np.int32), np.zeros((1, 4), np.float32)
    assert top_blocks(scores, np.array([6], np.int32), 4, ids, top) == [3]
    np.testing.assert_array_equal(ids, [[1, 3, 4, -1]])
    np.testing.assert_array_equal(top, [[1, 3, 2, -np.inf]])


def test_refuses_what_does_not_fit():
    scores, ids, top = np.zeros((1, 3), np.float32), np.zeros((1, 2), np.int32), np.zeros((1, 2), np.float32)
    with pytest.raises(ValueError, match="limits"):
        top_blocks(scores, np.array([4], np.int32), 2, ids, top)
    with pytest.raises(ValueError, match="ids"):
        top_blocks(scores, np.array([3], np.int32), 3, ids, top)
