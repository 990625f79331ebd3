"""A worker that writes rows into the stores' memory itself, and selects there: as if it had asked for both."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from moorage.workers.errors import InvalidRequest, MoorageError, NotFound
from moorage.workers.kv import host_memory
from moorage.workers.kv.host_memory import HostMemory
from moorage.workers.kv.link import Link, LocalLink
from moorage.workers.kv.mailbox_link import MailboxLink
from moorage.workers.kv.mailbox_server import MailboxServer
from moorage.workers.kv.messages import SelectReply, SelectRequest
from moorage.workers.kv.shards import ShardedKv
from moorage.workers.kv.store import KvStore
from moorage.workers.spec import HeadPool, KvLayout

LAYOUT = KvLayout(3, 2, 64, 4)
NUM_PAGES, STRIPE = 1300, 2


@pytest.fixture(params=["local", "mailbox"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Cluster:
    """Some stores, a worker that maps their memory, and stores of their own that another worker asks."""

    def __init__(self, kind: str, num_shards: int, layout: KvLayout = LAYOUT) -> None:
        self.stores = [KvStore(layout, NUM_PAGES) for _ in range(2 * num_shards)]
        self.servers = [MailboxServer(store) for store in self.stores] if kind == "mailbox" else []
        self.links: list[Link] = [MailboxLink(server.address) for server in self.servers]
        self.links = self.links or [LocalLink(store) for store in self.stores]
        self.kv = ShardedKv(self.links[:num_shards], layout, STRIPE, score_here=True)
        self.asking = ShardedKv(self.links[num_shards:], layout, STRIPE)
        memory = self.kv.host_memory()
        assert memory is not None
        self.memory: HostMemory = memory

    def both(self) -> tuple[ShardedKv, ShardedKv]:
        return self.kv, self.asking

    def write(self, session_id: int, position: int, rows: np.ndarray) -> None:
        """rows [L, 2, Hkv, D] go where the tables say."""
        tables, size = self.memory.tables(session_id), LAYOUT.block_size
        block, row = divmod(position, size)
        stripe, offset = divmod(block, STRIPE)
        rounds, shard = divmod(stripe, len(tables.pages))
        at = (tables.first_link + shard) % len(tables.pages)
        page = tables.pages[at][rounds * STRIPE + offset]
        for layer, parts in zip(self.memory.layers, rows, strict=True):
            layer.kv[at][page, :, :, row] = parts.astype(np.float16).view(np.uint16)

    def close(self) -> None:
        for store in self.stores:
            store.check_integrity()
        for link in self.links:
            link.close()
        for server in self.servers:
            server.close()
        for store in self.stores:
            store.close()


@pytest.fixture
def cluster(kind: str) -> Iterator[Cluster]:
    made = Cluster(kind, 2)
    yield made
    made.close()


def draw(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal((*shape, LAYOUT.num_kv_heads, LAYOUT.head_dim), np.float32)


def prefill(cluster: Cluster, rng: np.random.Generator, session_id: int, num_tokens: int) -> None:
    rows = draw(rng, LAYOUT.num_layers, 2, num_tokens)
    for kv in cluster.both():
        kv.open(session_id, 600, first_shard=session_id)
        for layer, (keys, values) in enumerate(rows):
            kv.append(session_id, layer, 0, keys, values)


def asked(rng: np.random.Generator, session_id: int, layer: int, limit: int, k: int = 4) -> SelectRequest:
    queries = rng.standard_normal((1, 4, LAYOUT.head_dim), np.float32)
    limits = np.array([limit], np.int32)
    return SelectRequest(session_id, layer, queries, 1, limits, k, True, 0.125, pooling=HeadPool.SUM)


def check_same(found: SelectReply, expected: SelectReply) -> None:
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.scores, expected.scores)


def test_rows_written_in_place_are_stored_sealed_and_chosen_as_appended_ones(
    rng: np.random.Generator, cluster: Cluster
) -> None:
    lengths = {1: 7, 2: 16, 3: 523}
    for session_id, length in lengths.items():
        prefill(cluster, rng, session_id, length)
    for step in range(11):
        positions = [(session_id, length + step) for session_id, length in lengths.items()]
        rows = draw(rng, len(positions), LAYOUT.num_layers, 2)
        assert not cluster.memory.begin(positions)
        for (session_id, position), parts in zip(positions, rows, strict=True):
            cluster.write(session_id, position, parts)
            for layer, (keys, values) in enumerate(parts):
                cluster.asking.append(session_id, layer, position, keys[None], values[None])
        assert not cluster.memory.commit(positions)
        for session_id, position in positions:
            for layer in range(LAYOUT.num_layers):
                request = asked(rng, session_id, layer, (position + 1) // LAYOUT.block_size)
                check_same(*(kv.select(request) for kv in cluster.both()))
    for session_id, length in lengths.items():
        blocks = np.arange(LAYOUT.num_blocks(length + 11), dtype=np.int32)
        outs = [np.zeros((len(blocks), 2, 2, LAYOUT.block_size, LAYOUT.head_dim), np.uint16) for _ in "ab"]
        for kv, out in zip(cluster.both(), outs, strict=True):
            kv.gather(session_id, 1, blocks, out, blocks)
        last = (length + 11) % LAYOUT.block_size or LAYOUT.block_size
        np.testing.assert_array_equal(outs[0][:-1], outs[1][:-1])
        np.testing.assert_array_equal(outs[0][-1, :, :, :last], outs[1][-1, :, :, :last])


@pytest.mark.parametrize("num_shards", [1, 2, 3])
@pytest.mark.parametrize("pooling", HeadPool)
def test_choices_made_here_are_those_of_the_stores(
    kind: str, rng: np.random.Generator, num_shards: int, pooling: HeadPool
) -> None:
    cluster = Cluster(kind, num_shards)
    for session_id in (1, 2):
        prefill(cluster, rng, session_id, 600 * session_id)
    requests = [asked(rng, session_id, 1, 140)._replace(pooling=pooling) for session_id in (1, 2)]
    check_same(*(kv.select(requests[0]) for kv in cluster.both()))
    if pooling is not HeadPool.SOFTMAX:
        for found, expected in zip(*(kv.select_together(requests) for kv in cluster.both()), strict=True):
            np.testing.assert_array_equal(found, expected)
    kept = np.arange(3, 100, 5, dtype=np.int32)
    for kv in cluster.both():
        kv.preselect(2, 1, kept, 120)
    restricted = requests[1]._replace(use_preselected=True)
    check_same(*(kv.select(restricted) for kv in cluster.both()))
    for kv in cluster.both():
        kv.truncate(2, 479)
    check_same(*(kv.select(restricted) for kv in cluster.both()))
    cluster.close()


def test_a_selection_here_asks_no_store(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster("mailbox", 1)
    prefill(cluster, rng, 1, 40)
    here = cluster.kv.select(asked(rng, 1, 0, 10))

    def refuse(*_: object) -> SelectReply:
        raise InvalidRequest("asked")

    for store in cluster.stores:
        monkeypatch.setattr(store.shard, "select", refuse)
    assert here.ids.shape == cluster.kv.select(asked(rng, 1, 0, 10)).ids.shape
    with pytest.raises(InvalidRequest, match="asked"):
        cluster.asking.select(asked(rng, 1, 0, 10))
    cluster.close()


def test_stores_are_waited_for_where_blocks_may_have_been_sealed_since(
    rng: np.random.Generator, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, size, asked_for = cluster.memory, LAYOUT.block_size, []
    prefill(cluster, rng, 1, 2 * size - 1)
    confirm = host_memory.confirm

    def noted(link: Link, session_id: int) -> None:
        asked_for.append(session_id)
        confirm(link, session_id)

    monkeypatch.setattr(host_memory, "confirm", noted)
    for _ in range(3):
        memory.confirm(1)
    assert asked_for == [1, 1]  # each of two stores once
    for position in range(2 * size - 1, 2 * size + 2):
        memory.begin([(1, position)])
        cluster.write(1, position, draw(rng, LAYOUT.num_layers, 2))
        memory.commit([(1, position)])
        memory.confirm(1)
    assert asked_for == [1] * 4
    for kv in cluster.both():
        kv.drop(1)
    prefill(cluster, rng, 1, 2 * size + 2)
    memory.confirm(1)
    assert asked_for == [1] * 6


def test_a_row_that_fits_nowhere_fails_its_session_alone(rng: np.random.Generator, cluster: Cluster) -> None:
    for session_id in (1, 2):
        prefill(cluster, rng, session_id, 9)
    failed = cluster.memory.begin([(1, 9), (2, 600 * LAYOUT.block_size), (3, 0), (1, 11)])
    assert {session_id: type(error) for session_id, error in failed.items()} == {
        1: InvalidRequest,
        2: InvalidRequest,
        3: NotFound,
    }
    assert "hole" in str(failed[1])


def test_commits_that_failed_are_told_when_a_block_is_sealed(
    rng: np.random.Generator, cluster: Cluster
) -> None:
    """The store lost session 2 behind the worker's back: it fails, and session 1 goes on."""
    for session_id in (1, 2):
        prefill(cluster, rng, session_id, 6)
    for store in cluster.stores[:2]:
        store.drop(2)
    told: dict[int, MoorageError] = {}
    for position in (6, 7):
        rows = [(1, position), (2, position)]
        cluster.memory.begin([rows[0]])
        told |= cluster.memory.commit(rows)
    assert list(told) == [2]
    assert isinstance(told[2], NotFound)
    assert "KV store" in str(told[2])
    assert cluster.kv.stats()[(1 + 0) % 2].num_sessions == 1


def test_more_sessions_than_one_packet_holds(cluster: Cluster) -> None:
    ids = range(1, 400)
    for session_id in ids:
        cluster.kv.open(session_id, 1)
    for position in range(LAYOUT.block_size):
        rows = [(session_id, position) for session_id in ids]
        assert not cluster.memory.begin(rows)
        assert not cluster.memory.commit(rows)
    assert cluster.kv.stats()[0].num_sealed == len(ids)


def test_memory_of_another_host_is_out_of_reach() -> None:
    store = KvStore(LAYOUT, 4)
    far = LocalLink(store)
    far.shard = None
    assert ShardedKv([LocalLink(store), far], LAYOUT).host_memory() is None
    store.close()
