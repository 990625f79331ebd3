from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from moorage.workers.kv.messages import SelectRequest
from moorage.workers.kv.store import KvStore
from moorage.workers.spec import AnchorType, HeadPool, KvLayout, KvType

PLAIN = KvLayout(2, 2, 64, 2, KvType.FP16, AnchorType.QUEST)
BLOCKS, K = 400, 4


@pytest.fixture
def stores():
    """The same store with and without codes."""
    made = [KvStore(layout, BLOCKS + 8) for layout in (replace(PLAIN, anchor_codes=True), PLAIN)]
    for store in made:
        store.open(7, 3)  # so that pages and blocks differ
        store.open(1, BLOCKS)
    yield made
    for store in made:
        store.close()


def append(rng, stores, start, end, scale=1.0, layer=0):
    rows = scale * rng.standard_normal((2, end - start, 2, 64)).astype(np.float32)
    for store in stores:
        store.append(1, layer, start, *rows)


def selections(rng, stores, rows=3, shared=True, first=1, limit=BLOCKS, layer=0, **more):
    queries = rng.standard_normal((rows, 4, 64)).astype(np.float32)
    request = SelectRequest(
        1,
        layer,
        queries,
        first,
        np.full(rows, limit, np.int32),
        K,
        shared,
        0.125,
        pooling=HeadPool.SUM,
        **more,
    )
    return [store.shard.select(request) for store in stores]


def check_same(coded, exact):
    """Codes may lose a block now and then; what is found has its exact score."""
    lost = ~(coded.ids[..., None] == exact.ids[..., None, :]).any(-1)
    assert lost.mean() <= 0.05
    if not lost.any():
        np.testing.assert_allclose(coded.scores, exact.scores, rtol=1e-5)


@pytest.mark.parametrize("shared", [True, False])
def test_codes_choose_as_anchors_do(rng, stores, shared):
    append(rng, stores, 0, 2 * BLOCKS)
    check_same(*selections(rng, stores, 8, shared))
    check_same(*selections(rng, stores, 8, shared, first=5, limit=333))


def test_codes_follow_what_is_appended_truncated_and_written_again(rng, stores):
    append(rng, stores, 0, 600)
    check_same(*selections(rng, stores))
    append(rng, stores, 600, 700, scale=3.0)
    check_same(*selections(rng, stores))
    for store in stores:
        store.truncate(1, 301)
    append(rng, stores, 301, 2 * BLOCKS, scale=2.0)
    check_same(*selections(rng, stores))


def test_a_session_under_an_old_name_starts_anew(rng, stores):
    append(rng, stores, 0, 2 * BLOCKS)
    selections(rng, stores)
    for store in stores:
        store.drop(1)
        store.open(1, BLOCKS)
    append(rng, stores, 0, 2 * BLOCKS, scale=0.01)
    check_same(*selections(rng, stores))


def test_a_preselection_is_chosen_from_by_codes_too(rng, stores):
    append(rng, stores, 0, 2 * BLOCKS)
    kept = np.arange(0, BLOCKS, 3, dtype=np.int32)
    for store in stores:
        store.shard.preselect(1, 0, kept, BLOCKS)
    coded, exact = selections(rng, stores, use_preselected=True)
    check_same(coded, exact)
    assert np.isin(coded.ids, kept).all()


def test_anchors_beyond_fp16_are_scored_exactly(rng):
    """A transform adds 64 channels up, so that keys which fp16 holds have anchors which it does not."""
    layout = replace(PLAIN, anchor_type=AnchorType.QUEST_HADAMARD)
    stores = [KvStore(each, BLOCKS + 8) for each in (replace(layout, anchor_codes=True), layout)]
    rows = np.full((2, 2, 2, 64), 6e4, np.float32)
    for store in stores:
        store.open(1, BLOCKS)
    append(rng, stores, 0, 2 * BLOCKS - 2)
    for store in stores:
        store.append(1, 0, 2 * BLOCKS - 2, *rows)
    assert np.isinf(stores[0].arena.anchors[0].view(np.float16)).any()
    coded, exact = selections(rng, stores, limit=BLOCKS - 1)
    np.testing.assert_array_equal(coded.ids, exact.ids)
    for store in stores:
        store.close()


def test_short_sessions_are_scored_exactly(rng, stores):
    append(rng, stores, 0, 40)
    coded, exact = selections(rng, stores)
    np.testing.assert_array_equal(coded.ids, exact.ids)
    np.testing.assert_array_equal(coded.scores, exact.scores)


def test_layers_have_ranges_of_their_own(rng, stores):
    append(rng, stores, 0, 2 * BLOCKS)
    append(rng, stores, 0, 2 * BLOCKS, scale=50.0, layer=1)
    check_same(*selections(rng, stores))
    check_same(*selections(rng, stores, layer=1))


def test_the_arena_has_room_for_codes_and_nothing_more(stores):
    coded, plain = stores
    code_bytes = 2 * 2 * 2 * 64 // 2
    assert coded.layout.page_bytes == plain.layout.page_bytes + code_bytes
    assert coded.arena.num_bytes == (BLOCKS + 8) * coded.layout.page_bytes
    assert coded.stats().anchor_bytes == plain.stats().anchor_bytes + (BLOCKS + 8) * code_bytes
