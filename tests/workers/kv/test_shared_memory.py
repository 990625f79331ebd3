"""Shared memory at addresses where Linux can serve it by huge pages."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from moorage.workers.kv.arena import Arena
from moorage.workers.kv.shared_memory import HUGE_BYTES, SharedMapping
from moorage.workers.kv.store import KvStore
from moorage.workers.spec import KvLayout

SIZE = 3 * HUGE_BYTES + 4096


@pytest.fixture
def fd() -> Iterator[int]:
    """Memory of three huge pages and a bit."""
    number = os.memfd_create("test-shared-memory")
    os.ftruncate(number, SIZE)
    yield number
    os.close(number)


def mapped_huge(address: int) -> int:
    """Bytes of a mapping that the system serves by huge pages."""
    begins = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if line.startswith(f"{address:x}-"):
            begins = True
        elif begins and line.startswith("ShmemPmdMapped:"):
            return int(line.split()[1]) << 10
    raise AssertionError(f"nothing is mapped at {address:x}")


def is_mapped(address: int) -> bool:
    return f"{address:x}-" in Path("/proc/self/maps").read_text()


def test_mappings_of_the_same_memory_begin_at_suitable_addresses(fd: int) -> None:
    one, other = SharedMapping(fd, SIZE), SharedMapping(fd, SIZE)
    assert one.address % HUGE_BYTES == other.address % HUGE_BYTES == 0
    one.array[-1] = 7
    assert (len(other.array), other.array[-1]) == (SIZE, 7)


def test_memory_stays_as_long_as_an_array_views_it(fd: int) -> None:
    mapping = SharedMapping(fd, SIZE)
    address, view = mapping.address, mapping.array[5:9]
    del mapping
    gc.collect()
    view[:] = 3
    assert is_mapped(address)
    del view
    gc.collect()
    assert not is_mapped(address)


def test_huge_pages_keep_what_was_written_and_are_shared(fd: int) -> None:
    one, other = SharedMapping(fd, SIZE), SharedMapping(fd, SIZE)
    one.array[:] = np.arange(SIZE, dtype=np.uint32).view(np.uint8)[:SIZE]
    before = other.array.copy()
    count = one.ask_huge(HUGE_BYTES // 2 + 1, 2 * HUGE_BYTES + 5)
    np.testing.assert_array_equal(one.array, before)
    np.testing.assert_array_equal(other.array, before)
    if not count:
        pytest.skip("this kernel gives no huge pages of shared memory")
    assert count == 1, "the first page is covered by less than a half, the second wholly"
    assert mapped_huge(one.address) == mapped_huge(other.address) == HUGE_BYTES
    assert one.ask_huge(HUGE_BYTES, 2 * HUGE_BYTES) == 0


def test_a_short_session_takes_no_more_memory_than_it_writes() -> None:
    store = KvStore(KvLayout(2, 1, 64, 16), 2000)
    store.open(1, 2000)
    store.append(1, 0, 0, *np.ones((2, 160, 1, 64), np.float32))
    written = 160 * 2 * 64 * 2
    assert written <= os.fstat(store.arena.fd).st_blocks * 512 <= 4 * written
    store.close()


def test_a_long_session_lies_on_huge_pages() -> None:
    store = KvStore(KvLayout(2, 1, 64, 16), 2000)
    store.open(1, 2000)
    rows = np.random.default_rng(1).standard_normal((2, 1800 * 16, 1, 64)).astype(np.float16)
    for start in range(0, rows.shape[1], 3200):
        store.append(1, 0, start, *rows[:, start : start + 3200])
    kept = store.arena.kv[0, :1800].view(np.float16).transpose(1, 0, 3, 2, 4).reshape(rows.shape)
    np.testing.assert_array_equal(kept, rows)
    taken = mapped_huge(store.arena.kv.ctypes.data)
    if not taken:
        pytest.skip("this kernel gives no huge pages of shared memory")
    assert taken % HUGE_BYTES == 0
    store.close()


def test_a_small_arena_is_left_as_it_is() -> None:
    arena = Arena(KvLayout(2, 1, 64, 16), 10)
    arena.ask_huge(1, np.arange(10, dtype=np.int32))
    arena.ask_huge(0, np.empty(0, np.int32))
    assert os.fstat(arena.fd).st_blocks == 0
    assert not arena.kv.any()
    arena.close()
