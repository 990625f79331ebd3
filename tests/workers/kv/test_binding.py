from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from moorage.workers.errors import InvalidConfig
from moorage.workers.kv.arena import Arena
from moorage.workers.kv.binding import bind_to
from moorage.workers.spec import KvLayout


def in_a_thread(action):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(action).result()


def test_a_thread_and_those_it_starts_stay_on_their_cpus() -> None:
    before = os.sched_getaffinity(0)
    one = min(before)

    def bound() -> tuple[set[int], set[int]]:
        bind_to([one])
        return os.sched_getaffinity(0), in_a_thread(lambda: os.sched_getaffinity(0))

    assert in_a_thread(bound) == ({one}, {one})
    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize("cpus", [[100_000], [-1]])
def test_refuses_cpus_that_are_not_there(cpus: list[int]) -> None:
    with pytest.raises(InvalidConfig, match="may not run on"):
        in_a_thread(lambda: bind_to(cpus))


def test_a_populated_arena_is_resident_and_zero() -> None:
    arena = Arena(KvLayout(2, 2, 64, 32), 40)
    before = os.fstat(arena.fd).st_blocks
    arena.populate()
    assert (before, os.fstat(arena.fd).st_blocks * 512) == (0, -(-arena.num_bytes // 4096) * 4096)
    assert not arena.kv.any()
    arena.close()
