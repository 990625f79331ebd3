"""Several shards must give what one store that holds everything gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

from moorage.workers.errors import InvalidRequest, StoreFull
from moorage.workers.kv.link import Link, LocalLink
from moorage.workers.kv.mailbox_link import MailboxLink
from moorage.workers.kv.mailbox_server import MailboxServer
from moorage.workers.kv.messages import SelectRequest
from moorage.workers.kv.operations import Open
from moorage.workers.kv.shards import ShardedKv
from moorage.workers.kv.store import KvStore
from moorage.workers.spec import AnchorType, HeadPool, KvLayout, KvType

LAYOUT = KvLayout(2, 2, 16, 4, KvType.FP16, AnchorType.QUEST, 1)
SCALE = 0.25
MakeKv = Callable[..., ShardedKv]


class FromTheLast(ShardedKv):
    """Its sessions begin at the last link."""

    def open(self, *arguments: Any, first_shard: int = -1, **named: Any) -> None:
        super().open(*arguments, first_shard=first_shard, **named)

    def attach(self, session_id: int, num_blocks: int, first_shard: int = -1) -> int:
        return super().attach(session_id, num_blocks, first_shard)


@pytest.fixture(params=["local", "local, from the last", "mailbox"])
def make_kv(request: pytest.FixtureRequest) -> Iterator[MakeKv]:
    with ExitStack() as stack:

        def make(num_shards: int, stripe_blocks: int = 2, num_pages: int = 64) -> ShardedKv:
            links: list[Link] = []
            for _ in range(num_shards):
                store = KvStore(LAYOUT, num_pages)
                stack.callback(store.close)
                stack.callback(store.check_integrity)
                if request.param != "mailbox":
                    links.append(LocalLink(store))
                    continue
                server = MailboxServer(store)
                stack.callback(server.close)
                links.append(MailboxLink(server.address))
            kind = FromTheLast if request.param.endswith("last") else ShardedKv
            kv = kind(links, LAYOUT, stripe_blocks)
            stack.callback(kv.close)
            return kv

        yield make


def draw_rows(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.standard_normal((count, LAYOUT.num_kv_heads, LAYOUT.head_dim), np.float32)


def fill(kv: ShardedKv, reference: Any, num_tokens: int, seed: int) -> None:
    """Session 1 with pieces of random length."""
    rng, start = np.random.default_rng(seed), 0
    while start < num_tokens:
        count = min(int(rng.choice([1, 3, 4, 5, 17, 40])), num_tokens - start)
        for layer in range(LAYOUT.num_layers):
            keys, values = draw_rows(rng, count), draw_rows(rng, count)
            kv.append(1, layer, start, keys, values)
            reference.append(1, layer, start, keys, values)
        start += count


def read(kv: ShardedKv, layer: int, blocks: np.ndarray) -> np.ndarray:
    out = np.zeros((len(blocks), 2, LAYOUT.num_kv_heads, LAYOUT.block_size, LAYOUT.head_dim), np.uint16)
    kv.gather(1, layer, blocks, out, np.arange(len(blocks), dtype=np.int32))
    return out.view(np.float16).astype(np.float32)


@pytest.mark.parametrize("num_shards", [1, 2, 3])
@pytest.mark.parametrize("stripe_blocks", [1, 3, 8])
@pytest.mark.parametrize("num_tokens", [0, 1, 3, 4, 5, 47, 161])
def test_blocks_come_back(
    make_kv: MakeKv, reference: Any, num_shards: int, stripe_blocks: int, num_tokens: int
) -> None:
    kv, expected = make_kv(num_shards, stripe_blocks), reference(LAYOUT)
    kv.open(1, LAYOUT.num_blocks(num_tokens))
    fill(kv, expected, num_tokens, num_tokens)
    blocks = np.random.default_rng(0).permutation(LAYOUT.num_blocks(num_tokens)).astype(np.int32)
    for layer in range(LAYOUT.num_layers):
        for block, rows in zip(blocks, read(kv, layer, blocks), strict=True):
            kept = expected.block(1, layer, block)
            np.testing.assert_array_equal(rows[:, :, : kept.shape[2]], kept)


@pytest.mark.parametrize("num_shards", [1, 2, 3])
@pytest.mark.parametrize("pooling", HeadPool)
@pytest.mark.parametrize("shared", [True, False])
def test_select_equals_one_store(
    make_kv: MakeKv, reference: Any, num_shards: int, pooling: HeadPool, shared: bool
) -> None:
    kv, expected, rng = make_kv(num_shards), reference(LAYOUT), np.random.default_rng(num_shards)
    kv.open(1, 41)
    fill(kv, expected, 161, 3)
    for rows, first, limit, k in [
        (1, 0, 40, 8),
        (3, 2, 33, 40),
        (2, 1, 2, 4),
        (2, 7, 7, 2),
        (1, 3, 99, 1),
        (2, 0, 9, 0),
    ]:
        queries = rng.standard_normal((rows, 4, LAYOUT.head_dim), np.float32)
        limits = np.maximum(limit - np.arange(rows) * 5, 0).astype(np.int32)
        request = SelectRequest(1, 1, queries, first, limits, k, shared, SCALE, pooling=pooling)
        ids, scores = kv.select(request)
        expected_ids, expected_scores = expected.select(request)
        np.testing.assert_array_equal(ids, expected_ids)
        np.testing.assert_allclose(scores, expected_scores, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("num_shards", [2, 3])
def test_among_equal_scores_the_lower_block_wins(make_kv: MakeKv, num_shards: int) -> None:
    kv = make_kv(num_shards)
    kv.open(1, 20)
    ones = np.ones((80, LAYOUT.num_kv_heads, LAYOUT.head_dim), np.float32)
    kv.append(1, 0, 0, ones, ones)
    ids, _ = kv.select(SelectRequest(1, 0, ones[:1, [0, 0]], 1, np.array([20], np.int32), 5, True, SCALE))
    np.testing.assert_array_equal(ids[0, 0], [1, 2, 3, 4, 5])


@pytest.mark.parametrize("num_shards", [1, 2, 3])
def test_a_preselection_equals_one_store(make_kv: MakeKv, reference: Any, num_shards: int) -> None:
    kv, expected, rng = make_kv(num_shards), reference(LAYOUT), np.random.default_rng(num_shards)
    kv.open(1, 41)
    fill(kv, expected, 161, 4)
    for first, limit, count in [(2, 35, 9), (0, 40, 3), (4, 10, 5), (5, 5, 0)]:
        kept = np.sort(rng.permutation(np.arange(first, limit))[:count]).astype(np.int32)
        kv.preselect(1, 0, kept, limit)
        expected.kept[1, 0] = (kept, limit)
        query = rng.standard_normal((1, 4, LAYOUT.head_dim), np.float32)
        for end in (limit - 1, limit, 40):
            limits = np.array([end], np.int32)
            request = SelectRequest(1, 0, query, first, limits, 4, True, SCALE, use_preselected=True)
            ids, _ = kv.select(request)
            np.testing.assert_array_equal(ids, expected.select(request)[0])


@pytest.mark.parametrize("num_shards", [1, 2, 3])
def test_truncate_then_append(make_kv: MakeKv, reference: Any, num_shards: int) -> None:
    kv, expected, rng = make_kv(num_shards), reference(LAYOUT), np.random.default_rng(7)
    kv.open(1, 30)
    fill(kv, expected, 100, 5)
    for cut in (99, 64, 37, 8, 1, 0):
        kv.truncate(1, cut)
        expected.truncate(1, cut)
        rows = draw_rows(rng, 13)
        kv.append(1, 0, cut, rows, -rows)
        expected.append(1, 0, cut, rows, -rows)
        blocks = np.arange(LAYOUT.num_blocks(cut + 13), dtype=np.int32)
        for block, held in zip(blocks, read(kv, 0, blocks), strict=True):
            kept = expected.block(1, 0, block)
            np.testing.assert_array_equal(held[:, :, : kept.shape[2]], kept)


@pytest.mark.parametrize("num_shards", [1, 2, 3])
def test_another_worker_takes_over(make_kv: MakeKv, reference: Any, num_shards: int) -> None:
    kv, expected = make_kv(num_shards), reference(LAYOUT)
    kv.open(1, 20)
    fill(kv, expected, 50, 6)
    # The worker died in the middle of a step: layer 0 is ahead.
    rows = draw_rows(np.random.default_rng(0), 9)
    kv.append(1, 0, 50, rows, rows)
    assert kv.attach(1, 20) == 50
    kv.append(1, 0, 50, -rows, -rows)
    expected.append(1, 0, 50, -rows, -rows)
    blocks = np.arange(59 // LAYOUT.block_size, dtype=np.int32)
    for block, held in zip(blocks, read(kv, 0, blocks), strict=True):
        np.testing.assert_array_equal(held, expected.block(1, 0, block))


@pytest.mark.parametrize("num_shards", [1, 2, 3])
def test_a_failed_open_or_grow_changes_nothing(make_kv: MakeKv, num_shards: int) -> None:
    kv = make_kv(num_shards, stripe_blocks=2, num_pages=8)
    kv.open(1, 4)
    # The last shard is the first that is full.
    kv.links[-1].call(Open(9, kv.stats()[-1].free_pages - 1))
    before = kv.stats()
    with pytest.raises(StoreFull):
        kv.open(2, 8 * num_shards)
    with pytest.raises(StoreFull):
        kv.grow(1, 8 * num_shards)
    with pytest.raises(InvalidRequest):
        kv.open(1, 1)
    assert kv.stats() == before
    kv.drop(1)
    kv.open(2, 1)
    kv.grow(2, 1)
    kv.grow(2, 0)
    kv.drop(2)
    kv.drop(2)
    assert sum(stats.num_sessions for stats in kv.stats()) == 1


@pytest.mark.parametrize("num_shards", [1, 2, 3])
@pytest.mark.parametrize("pooling", [HeadPool.SUM, HeadPool.MAX])
def test_sessions_from_different_shards_are_asked_together(
    make_kv: MakeKv, reference: Any, num_shards: int, pooling: HeadPool
) -> None:
    kv, rng = make_kv(num_shards), np.random.default_rng(5)
    requests, expected = [], []
    for session_id in range(1, 5):
        alone = reference(LAYOUT)
        kv.open(session_id, 12, first_shard=session_id)
        rows = draw_rows(rng, 40 + session_id)
        kv.append(session_id, 0, 0, rows, -rows)
        alone.append(session_id, 0, 0, rows, -rows)
        query = rng.standard_normal((1, 4, LAYOUT.head_dim), np.float32)
        limits = np.array([10], np.int32)
        requests.append(SelectRequest(session_id, 0, query, 1, limits, 4, True, SCALE, pooling=pooling))
        expected.append(alone.select(requests[-1])[0])
    for ids, alone_ids in zip(kv.select_together(requests), expected, strict=True):
        np.testing.assert_array_equal(ids, alone_ids)


@pytest.mark.parametrize("num_shards", [1, 2, 3])
def test_trimming_gives_back_the_blocks_without_tokens(make_kv: MakeKv, num_shards: int) -> None:
    kv = make_kv(num_shards)
    kv.open(1, 40)
    rows = draw_rows(np.random.default_rng(0), 30)
    for layer in range(LAYOUT.num_layers):
        kv.append(1, layer, 0, rows, rows)
    kv.trim(1, 21)
    assert sum(stats.num_pages - stats.free_pages for stats in kv.stats()) == LAYOUT.num_blocks(21)
    kv.grow(1, 40)
    assert sum(stats.num_pages - stats.free_pages for stats in kv.stats()) == 40
    kept = read(kv, 0, np.arange(5, dtype=np.int32))[:, 0].swapaxes(1, 2).reshape(-1, 2, LAYOUT.head_dim)
    np.testing.assert_array_equal(kept, rows[:20].astype(np.float16).astype(np.float32))


def test_short_sessions_spread_over_the_shards(make_kv: MakeKv) -> None:
    kv = make_kv(3, num_pages=4)
    for session_id in range(6):
        kv.open(session_id, 2, first_shard=session_id)
    assert [stats.free_pages for stats in kv.stats()] == [0, 0, 0]


def test_no_links_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        ShardedKv([], LAYOUT)
