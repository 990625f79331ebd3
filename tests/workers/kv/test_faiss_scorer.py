"""Faiss must select what the Numba kernels select."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from moorage.workers.errors import InvalidRequest
from moorage.workers.kv.messages import SelectRequest
from moorage.workers.kv.store import KvStore
from moorage.workers.spec import AnchorPool, AnchorType, HeadPool, KvLayout, KvType, Scorer

pytest.importorskip("faiss")
SIZE, NUM_BLOCKS = 16, 12


def stores(anchor_type: AnchorType, anchor_num: int, scorer: Scorer) -> tuple[KvStore, KvStore]:
    layout = KvLayout(2, 2, 16, SIZE, KvType.FP16, anchor_type, anchor_num)
    pair = KvStore(layout, NUM_BLOCKS + 1), KvStore(replace(layout, scorer=scorer), NUM_BLOCKS + 1)
    for store in pair:
        store.open(1, NUM_BLOCKS + 1)
    return pair


def check(pair: tuple[KvStore, KvStore], rng: np.random.Generator, use_preselected: bool = False) -> None:
    queries = rng.standard_normal((3, 6, 16), np.float32)
    for first, k in [(0, 3), (2, 20), (5, 0), (4, 1)]:
        limits = np.array([NUM_BLOCKS, 7, 0], np.int32)
        request = SelectRequest(
            1, 1, queries, first, limits, k, True, 0.25, use_preselected, HeadPool.SUM, AnchorPool.SUM
        )
        numba, faiss = (store.shard.select(request) for store in pair)
        np.testing.assert_array_equal(faiss.ids, numba.ids)
        np.testing.assert_allclose(faiss.scores, numba.scores, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("scorer", [Scorer.FAISS, Scorer.FAISS_FP16])
@pytest.mark.parametrize(
    ("anchor_type", "anchor_num"),
    [(kind, num) for kind in AnchorType for num in ((1,) if kind.codes_keys else (1, 2))],
)
def test_the_same_choices(anchor_type: AnchorType, anchor_num: int, scorer: Scorer) -> None:
    pair, rng = stores(anchor_type, anchor_num, scorer), np.random.default_rng(anchor_num)
    for start, count in [(0, 60), (60, 140), (80, 100)]:
        rows = rng.standard_normal((count, 2, 16), np.float32)
        for store in pair:
            store.append(1, 1, start, rows, rows)
        check(pair, rng)
    for store in pair:
        store.shard.preselect(1, 1, np.array([1, 4, 6, 7], np.int32), 9)
    check(pair, rng, use_preselected=True)
    if anchor_type.needs_importance:
        importance = rng.random((4, 2, SIZE)).astype(np.float32)
        for store in pair:
            store.rebuild_anchors(1, 1, 3, importance)
        check(pair, rng)
    for store in pair:
        store.truncate(1, 74)
    check(pair, rng)
    for store in pair:
        store.drop(1)
        store.close()


def test_refuses_what_is_no_inner_product() -> None:
    _, store = stores(AnchorType.QUEST, 2, Scorer.FAISS)
    request = SelectRequest(1, 0, np.ones((1, 2, 16), np.float32), 0, np.ones(1, np.int32), 1, True, 1.0)
    for changes in (
        {"pooling": HeadPool.SUM},
        {"pooling": HeadPool.MAX, "anchor_pool": AnchorPool.SUM},
        {"pooling": HeadPool.SUM, "anchor_pool": AnchorPool.SUM, "shared": False},
    ):
        with pytest.raises(InvalidRequest, match="faiss"):
            store.shard.select(request._replace(**changes))
    store.close()
