"""Every kind of anchor, over every kind of link, against a slow store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

from moorage.workers.errors import InvalidRequest
from moorage.workers.kv.link import Link, LocalLink
from moorage.workers.kv.mailbox_link import MailboxLink
from moorage.workers.kv.mailbox_server import MailboxServer
from moorage.workers.kv.messages import SelectRequest
from moorage.workers.kv.shards import ShardedKv
from moorage.workers.kv.store import KvStore
from moorage.workers.spec import AnchorPool, AnchorSpace, AnchorType, HeadPool, KvLayout, KvType

SIZE, DIM, HEADS, NUM_BLOCKS = 8, 16, 4, 11
INV_FREQ = 1.0 / 100.0 ** (np.arange(6) / 6)
MakeKv = Callable[[KvLayout, int], ShardedKv]


@pytest.fixture(params=["local", "mailbox"])
def make_kv(request: pytest.FixtureRequest) -> Iterator[MakeKv]:
    with ExitStack() as stack:

        def make(layout: KvLayout, num_shards: int) -> ShardedKv:
            links: list[Link] = []
            for _ in range(num_shards):
                store = KvStore(layout, 16)
                stack.callback(store.close)
                if request.param == "local":
                    links.append(LocalLink(store))
                    continue
                server = MailboxServer(store)
                stack.callback(server.close)
                links.append(MailboxLink(server.address))
            kv = ShardedKv(links, layout, 2)
            stack.callback(kv.close)
            return kv

        yield make


def check(kv: ShardedKv, expected: Any, rng: np.random.Generator) -> None:
    queries = rng.standard_normal((2, HEADS, DIM), np.float32)
    limits = np.array([NUM_BLOCKS, 7], np.int32)
    for anchor_pool in AnchorPool:
        for shared, perhead in [(True, False), (False, False), (False, True)]:
            axes: dict[str, Any] = {"pooling": HeadPool.SUM, "anchor_pool": anchor_pool, "perhead": perhead}
            request = SelectRequest(1, 0, queries, 1, limits, 3, shared, 0.25, **axes)
            ids, scores = kv.select(request)
            expected_ids, expected_scores = expected.select(request)
            np.testing.assert_array_equal(ids, expected_ids)
            np.testing.assert_allclose(scores, expected_scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("space", list(AnchorSpace))
@pytest.mark.parametrize("anchor_type", list(AnchorType))
@pytest.mark.parametrize("num_shards", [1, 3])
def test_every_anchor_equals_its_definition(
    make_kv: MakeKv, reference: Any, anchor_type: AnchorType, space: AnchorSpace, num_shards: int
) -> None:
    for anchor_num in (1, 2):
        layout = KvLayout(1, 2, DIM, SIZE, KvType.FP32, anchor_type, anchor_num, space, 4)
        kv, expected, rng = make_kv(layout, num_shards), reference(layout), np.random.default_rng(anchor_num)
        expected.inv_freq = INV_FREQ
        kv.open(1, NUM_BLOCKS + 1, INV_FREQ)
        start = 0
        for count in (3, 30, 1, 6, NUM_BLOCKS * SIZE + 2 - 40):
            rows = [rng.standard_normal((count, 2, DIM), np.float32) for _ in "kv"]
            kv.append(1, 0, start, *rows)
            expected.append(1, 0, start, *rows)
            start += count
        check(kv, expected, rng)
        if anchor_type.needs_importance:
            for first, end in [(0, 1), (2, 9), (5, NUM_BLOCKS)]:
                importance = rng.random((end - first, 2, SIZE)).astype(np.float32)
                kv.rebuild_anchors(1, 0, first, importance)
                expected.rebuild_anchors(1, 0, first, importance)
            check(kv, expected, rng)


def test_refuses_importance_that_does_not_fit(make_kv: MakeKv) -> None:
    layout = KvLayout(1, 2, DIM, SIZE, KvType.FP32, AnchorType.DYNAMIC)
    kv = make_kv(layout, 1)
    kv.open(1, 4)
    kv.append(1, 0, 0, *(np.zeros((2 * SIZE, 2, DIM), np.float32) for _ in "kv"))
    with pytest.raises(InvalidRequest, match="sealed"):
        kv.rebuild_anchors(1, 0, 1, np.zeros((2, 2, SIZE), np.float32))


def test_anchors_of_rotated_keys_need_angles(make_kv: MakeKv) -> None:
    kv = make_kv(KvLayout(1, 2, DIM, SIZE, anchor_space=AnchorSpace.ROTATED), 2)
    with pytest.raises(InvalidRequest, match="angles"):
        kv.open(1, 4)
