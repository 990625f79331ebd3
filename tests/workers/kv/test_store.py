from __future__ import annotations

import numpy as np
import pytest

from moorage.workers.errors import InvalidRequest, StoreFull
from moorage.workers.kv.messages import SelectRequest
from moorage.workers.kv.page_allocator import PageAllocator
from moorage.workers.kv.store import KvStore
from moorage.workers.spec import KvLayout

LAYOUT = KvLayout(2, 1, 16, 4)


def rows(count: int) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, 1, 16), np.float32)


def test_pages_come_lowest_first() -> None:
    pages = PageAllocator(10)
    first, second = pages.allocate(3, 1), pages.allocate(4, 2)
    np.testing.assert_array_equal(first, [0, 1, 2])
    pages.free(first)
    np.testing.assert_array_equal(pages.allocate(5, 3), [0, 1, 2, 7, 8])
    with pytest.raises(StoreFull, match="session 4 needs 2 more blocks, 1 of 10"):
        pages.allocate(2, 4)
    pages.free(second)
    assert pages.num_free == 5


def test_an_untouched_store_is_sound() -> None:
    store = KvStore(LAYOUT, 4)
    store.check_integrity()
    assert store.stats().used_bytes == 0
    store.close()
    store.close()


@pytest.mark.parametrize("damage", ["shared page", "free list", "lost page", "sealed count"])
def test_integrity_names_what_is_broken(damage: str) -> None:
    store = KvStore(LAYOUT, 8)
    for session_id in (1, 2):
        store.open(session_id, 2)
        store.append(session_id, 0, 0, rows(6), rows(6))
    store.check_integrity()
    session = store.shard.sessions[1]
    if damage == "shared page":
        session.table.pages = store.shard.sessions[2].table.pages
    elif damage == "free list":
        store._pages.free(session.table.pages)
    elif damage == "lost page":
        session.table.pages = session.table.pages[:1]
    else:
        session.num_sealed[1] = 1
    with pytest.raises(RuntimeError, match="KV store"):
        store.check_integrity()


def test_rows_of_the_wrong_shape_are_refused() -> None:
    store = KvStore(LAYOUT, 2)
    store.open(1, 2)
    with pytest.raises(InvalidRequest, match=r"expected \[tokens, 1, 16\]"):
        store.append(1, 0, 0, rows(3)[:, :, :8], rows(3)[:, :, :8])
    with pytest.raises(InvalidRequest, match="as many"):
        store.append(1, 0, 0, rows(3), rows(2))
    assert store.attach(1).num_tokens.tolist() == [0, 0]


def test_queries_of_the_wrong_shape_are_refused() -> None:
    store = KvStore(KvLayout(1, 2, 16, 4), 2)
    store.open(1, 2)
    for shape in [(1, 3, 16), (1, 2, 8), (2, 16)]:
        request = SelectRequest(1, 0, np.zeros(shape, np.float32), 0, np.zeros(1, np.int32), 1, True, 1.0)
        with pytest.raises(InvalidRequest, match="queries of shape"):
            store.shard.select(request)
    request = SelectRequest(1, 0, np.zeros((2, 2, 16), np.float32), 0, np.zeros(1, np.int32), 1, True, 1.0)
    with pytest.raises(InvalidRequest, match="one limit a row"):
        store.shard.select(request)


def test_only_committed_full_blocks_can_be_chosen() -> None:
    store = KvStore(LAYOUT, 3)
    store.open(1, 3)
    request = SelectRequest(1, 0, np.ones((1, 1, 16), np.float32), 0, np.array([3], np.int32), 3, True, 1.0)
    store.write(1, 0, 0, rows(9), rows(9))
    assert (store.shard.select(request).ids == -1).all()
    store.commit(1, 0, 0, 9)
    assert store.shard.select(request).ids.tolist() == [[[0, 1, -1]]]


def test_many_sessions_leave_no_trace() -> None:
    store = KvStore(LAYOUT, 12)
    for session_id in range(200):
        store.open(session_id, session_id % 12)
        store.append(session_id, 1, 0, rows(session_id % 12 * 4), rows(session_id % 12 * 4))
        if session_id % 3:
            store.drop(session_id - 1)
            store.drop(session_id)
        else:
            store.drop(session_id)
    store.check_integrity()
    stats = store.stats()
    assert (stats.free_pages, stats.num_sessions, stats.num_sealed) == (12, 0, 0)
