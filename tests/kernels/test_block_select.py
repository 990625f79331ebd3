from __future__ import annotations

import numpy as np
import pytest

from moorage.kernels.block_score import codes
from moorage.kernels.block_score import reference as score_reference
from moorage.kernels.block_score.code_dots import code_dots
from moorage.kernels.block_select import Coded, reference, select_blocks
from moorage.kernels.half import from_storage, to_storage
from moorage.kernels.simd_lanes import host_has

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


def coded(anchors, pages, num_kept):
    size = anchors[0].size
    low, high = np.full(size, np.inf, np.float32), np.full(size, -np.inf, np.float32)
    assert codes.extend_range(anchors, pages, np.zeros(size, np.float32), low, high) == bool(len(pages))
    step = (high - low) / np.float32(codes.LEVELS)
    layer = np.zeros((len(anchors), size // 2), np.uint8)
    codes.encode_anchors(anchors, pages, low, step, layer)
    return Coded(layer, step, num_kept), low


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


@pytest.mark.parametrize("quest", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[2] % 64 == 0 and shape[4]])
def test_codes_that_leave_enough_blocks_change_nothing(rng, draw, poisoned, shape, shared, quest):
    anchors, pages, queries, limits = drawn(rng, draw, shape, quest)
    selections = 1 if shared else shape[0]
    scratch = poisoned((len(queries) * selections * len(pages),))
    arguments = (anchors, pages, queries, limits, selections, shape[-1], quest)
    exact = select(select_blocks, *arguments, scratch=scratch)
    kept = max(shape[-1], len(pages) // 3)
    found = select(select_blocks, *arguments, scratch=scratch, coded=coded(anchors, pages, kept)[0])
    np.testing.assert_array_equal(found[0], exact[0])
    np.testing.assert_allclose(found[1], exact[1], rtol=1e-4, atol=1e-4)


def test_many_codes_take_the_parallel_path(rng, draw, poisoned):
    shape = (4, 2, 128, 2, 18_000, 9)
    anchors, pages, queries, limits = drawn(rng, draw, shape, False)
    scratch = poisoned((2 * len(pages),))
    arguments = (anchors, pages, queries, limits, 1, shape[-1], False)
    exact = select(select_blocks, *arguments, scratch=scratch)
    found = select(select_blocks, *arguments, scratch=scratch, coded=coded(anchors, pages, 1000)[0])
    np.testing.assert_array_equal(found[0], exact[0])


def test_codes_match_reference_and_lie_within_half_a_step(rng, draw):
    anchors, pages, _, _ = drawn(rng, draw, (2, 1, 64, 1, 50, 1), True)
    (layer, step, _), low = coded(anchors, pages, 1)
    expected = np.zeros_like(layer)
    score_reference.encode_anchors(anchors, pages, low, step, expected)
    assert (layer != expected).mean() < 1e-3  # a value between two codes may go either way
    values = from_storage(anchors[pages]).reshape(50, -1)
    places = np.stack((layer[pages] & 15, layer[pages] >> 4), axis=-1).reshape(50, -1)
    assert (np.abs(low + places * step - values) <= 0.501 * step + 1e-6).all()


def test_a_channel_without_spread_is_coded_as_itself(draw):
    anchors = draw(1, 1, 1, 64).repeat(9, axis=0)
    (layer, step, _), _ = coded(anchors, np.arange(9, dtype=np.int32), 1)
    assert not step.any()
    assert not layer.any()


def test_a_range_moves_only_for_what_lies_beyond_its_slack():
    anchors = np.zeros((3, 1, 1, 64), np.float32)
    anchors[1, 0, 0, 5], anchors[2, 0, 0, 5] = 0.25, 0.75
    low, high, slack = np.zeros(64, np.float32), np.zeros(64, np.float32), np.full(64, 0.5, np.float32)
    assert not codes.extend_range(anchors, np.array([0, 1], np.int32), slack, low, high)
    assert not high.any()
    assert codes.extend_range(anchors, np.array([2], np.int32), slack, low, high)
    assert high[5] == 0.75
    assert not low.any()


@pytest.mark.parametrize("pairwise", [False, True])
@pytest.mark.parametrize("size", [32, 64, 160])
def test_whole_number_products_are_exact(rng, pairwise, size):
    if pairwise and not host_has("avx2"):
        pytest.skip("this processor has no AVX2")
    import numba

    tile = code_dots(pairwise)

    @numba.njit
    def run(stored, even, odd, size, out):
        tile(stored, 0, size, 2 * size, 3 * size, even, odd, 0, size, out, 0)

    stored = rng.integers(0, 256, 4 * size).astype(np.uint8)
    even, odd = (rng.integers(-127, 128, size).astype(np.int8) for _ in range(2))
    stored[:size], even[:], odd[:] = 255, 127, 127  # the largest sum there can be
    out = np.zeros(4, np.int32)
    run(stored, even, odd, size, out)
    rows = stored.reshape(4, size).astype(np.int64)
    np.testing.assert_array_equal(
        out, (rows & 15) @ even.astype(np.int64) + (rows >> 4) @ odd.astype(np.int64)
    )


def test_nan_query_chooses_nothing(draw, poisoned):
    anchors, pages = draw(40, 2, 1, 64), np.arange(40, dtype=np.int32)
    queries = np.full((1, 2, 64), np.nan, np.float32)
    arguments = (anchors, pages, queries, np.array([40], np.int32), 1, 4, False)
    for more in ({}, {"coded": coded(anchors, pages, 16)[0]}):
        ids, scores = select(select_blocks, *arguments, scratch=poisoned((40,)), **more)
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
    good = Coded(np.zeros((4, 32), np.uint8), np.ones(64, np.float32), 1)
    for name, wrong in (
        ("codes_layer", good._replace(codes_layer=np.zeros((3, 32), np.uint8))),
        ("step", good._replace(step=np.ones(63, np.float32))),
    ):
        with pytest.raises(ValueError, match=f"^{name}: "):
            select(select_blocks, anchors, pages, queries, limits, 1, 1, False, scratch=scratch, coded=wrong)
    with pytest.raises(ValueError, match="64"):
        codes.encode_anchors(
            draw(4, 1, 1, 32), pages, *np.zeros((2, 32), np.float32), np.zeros((4, 16), np.uint8)
        )
