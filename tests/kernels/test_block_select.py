from __future__ import annotations

import numpy as np
import pytest

from moorage.kernels.block_select import reference, select_blocks
from moorage.kernels.half import from_storage, to_storage

SHAPES = [  # KV heads, group, head size, queries, blocks, selected
    (1, 1, 32, 1, 0, 2),
    (1, 1, 32, 1, 1, 2),
    (2, 2, 32, 3, 3, 0),
    (3, 3, 64, 1, 5, 5),
    (2, 4, 96, 2, 33, 7),
    (4, 2, 128, 1, 511, 12),
    (2, 7, 64, 2, 513, 40),
]


def drawn(rng, draw, shape, quest):
    num_kv_heads, group, dim, rows, count, _ = shape
    anchors = draw(count + 2, num_kv_heads, 2 if quest else 1, dim)
    if quest:
        values = from_storage(anchors)
        values[:, :, 0], values[:, :, 1] = values.max(axis=2), values.min(axis=2)
        anchors = to_storage(values, anchors.dtype == np.uint16)
    pages = rng.permutation(count + 2)[:count].astype(np.int32)
    queries = rng.standard_normal((rows, num_kv_heads * group, dim)).astype(np.float32)
    limits = rng.integers(0, count + 1, rows).astype(np.int32)
    limits[0] = count
    return anchors, pages, queries, limits


def select(select, anchors, pages, queries, limits, selections, k, quest, **more):
    ids = np.full((len(queries), selections, k), 77, np.int32)
    scores = np.full(ids.shape, 77, np.float32)
    select(anchors, pages, queries, limits, quest=quest, scale=0.25, ids=ids, scores=scores, **more)
    return ids, scores


@pytest.mark.parametrize("quest", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_reference(rng, draw, poisoned, shape, shared, quest):
    anchors, pages, queries, limits = drawn(rng, draw, shape, quest)
    selections = 1 if shared else shape[0]
    scratch = poisoned((len(queries) * selections * len(pages),))
    arguments = (anchors, pages, queries, limits, selections, shape[-1], quest)
    ids, scores = select(select_blocks, *arguments, scratch=scratch)
    expected_ids, expected = select(reference.select_blocks, *arguments)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)


def test_many_blocks_take_the_parallel_path(rng, draw, poisoned):
    shape = (4, 2, 128, 2, 18_000, 9)
    anchors, pages, queries, limits = drawn(rng, draw, shape, False)
    scratch = poisoned((2 * len(pages),))
    arguments = (anchors, pages, queries, limits, 1, shape[-1], False)
    ids, scores = select(select_blocks, *arguments, scratch=scratch)
    for row in range(2):
        one = slice(row, row + 1)
        alone = (anchors, pages, queries[one], limits[one], 1, shape[-1], False)
        expected = select(select_blocks, *alone, scratch=scratch)
        np.testing.assert_array_equal(ids[one], expected[0])
        np.testing.assert_allclose(scores[one], expected[1], rtol=1e-5)


def test_nan_query_chooses_nothing(draw, poisoned):
    anchors, pages = draw(40, 2, 1, 64), np.arange(40, dtype=np.int32)
    queries = np.full((1, 2, 64), np.nan, np.float32)
    arguments = (anchors, pages, queries, np.array([40], np.int32), 1, 4, False)
    ids, scores = select(select_blocks, *arguments, scratch=poisoned((40,)))
    assert (ids == -1).all()
    assert (scores == -np.inf).all()


def test_refuses_what_does_not_fit(draw, poisoned):
    anchors, pages = draw(4, 2, 1, 32), np.array([0, 3], np.int32)
    queries, limits, scratch = np.zeros((1, 4, 32), np.float32), np.array([2], np.int32), poisoned((4,))
    with pytest.raises(ValueError, match="selections"):
        select(select_blocks, anchors, pages, queries, limits, 3, 1, False, scratch=scratch)
    with pytest.raises(ValueError, match="room"):
        select(select_blocks, anchors, pages, queries, limits, 1, 1, False, scratch=scratch[:1])
    with pytest.raises(ValueError, match="limits"):
        select(select_blocks, anchors, pages, queries, limits + 1, 1, 1, False, scratch=scratch)
    with pytest.raises(ValueError, match="anchors_layer"):
        select(select_blocks, anchors, pages, queries, limits, 1, 1, True, scratch=scratch)
    with pytest.raises(ValueError, match="pages"):
        select(select_blocks, anchors, pages + 3, queries, limits, 1, 1, False, scratch=scratch)
    with pytest.raises(ValueError, match="limits"):
        select(
            select_blocks, anchors, pages, queries, np.array([2, 2], np.int32), 1, 1, False, scratch=scratch
        )
    with pytest.raises(ValueError, match="queries"):
        select(select_blocks, anchors, pages, queries[..., :16].copy(), limits, 1, 1, False, scratch=scratch)
    with pytest.raises(ValueError, match="query heads"):
        select(select_blocks, anchors, pages, queries[:, :3].copy(), limits, 1, 1, False, scratch=scratch)
