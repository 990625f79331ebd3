"""Selections of shards joined, against sorting."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.kernels.merge_top import merge_top, reference


def selections(
    rng: np.random.Generator, num_shards: int, num_rows: int, count: int, ties: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Ascending ids of each shard, some with padding, and their scores."""
    ids = np.full((num_shards, num_rows, count), -1, np.int32)
    scores = np.full(ids.shape, -np.inf, np.float32)
    for shard in range(num_shards):
        for row in range(num_rows):
            held = int(rng.integers(0, count + 1)) if rng.random() < 0.5 else count
            ids[shard, row, :held] = np.sort(rng.choice(4 * count + 1, held, replace=False))
            drawn = rng.integers(0, 3, held) if ties else rng.standard_normal(held)
            scores[shard, row, :held] = drawn
    return ids, scores


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 4),
    st.integers(0, 3),
    st.integers(0, 40),
    st.integers(1, 9),
    st.integers(0, 50),
    st.booleans(),
)
def test_matches_reference(
    seed: int, num_shards: int, num_rows: int, count: int, length: int, k: int, ties: bool
) -> None:
    ids, scores = selections(np.random.default_rng(seed), num_shards, num_rows, count, ties)
    for found, expected in zip(
        merge_top(ids, scores, length, k), reference.merge_top(ids, scores, length, k), strict=True
    ):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("seed", range(3))
def test_long_choices_take_the_way_of_bins(seed: int) -> None:
    ids, scores = selections(np.random.default_rng(seed), 2, 2, 1500, ties=False)
    for found, expected in zip(
        merge_top(ids, scores, 8, 700), reference.merge_top(ids, scores, 8, 700), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_a_nan_is_never_chosen() -> None:
    ids = np.array([[[0, 1]], [[0, 1]]], np.int32)
    scores = np.array([[[1, np.nan]], [[np.nan, 3]]], np.float32)
    best, top = merge_top(ids, scores, 1, 3)
    assert best.tolist() == [[0, 3, -1]]
    assert top.tolist() == [[1.0, 3.0, -np.inf]]


def test_shapes_that_do_not_fit_are_refused() -> None:
    ids = np.zeros((2, 1, 3), np.int32)
    with pytest.raises(ValueError, match="scores"):
        merge_top(ids, np.zeros((2, 1, 2), np.float32), 1, 1)
