"""Sessions that come and go leave nothing behind: no memory of store or worker, no descriptor, no segment."""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import psutil
import pytest

from moorage.workers.kv.mailbox_link import MailboxLink
from moorage.workers.kv.mailbox_server import MailboxServer
from moorage.workers.kv.messages import SelectRequest
from moorage.workers.kv.store import KvStore
from moorage.workers.spec import HeadPool, KvLayout, Positions
from tests.engine_driver import Driver, memory
from tests.tiny_models import build_tiny_checkpoint
from tests.workers.kv.asker import Asker

LAYOUT = KvLayout(2, 2, 64, 2)
BLOCKS = 40
WARM = 150
GROWTH_BYTES = 2 * 2**20
"""What an allocator may still take after the warm-up; 10 000 sessions that each left 256 bytes would exceed it."""


def serve(parent: Connection) -> None:
    """A store's process: until the parent closes the pipe."""
    server = MailboxServer(KvStore(LAYOUT, 2 * BLOCKS), num_threads=1)
    parent.send(server.address)
    try:
        parent.recv()
    except EOFError:
        server.close()


def footprint(pids: list[int]) -> tuple[int, int, int]:
    """(private bytes, descriptors, shared segments) of processes."""
    gc.collect()
    processes = [psutil.Process(pid) for pid in pids]
    private = sum(process.memory_full_info().uss for process in processes)
    return private, sum(process.num_fds() for process in processes), len(os.listdir("/dev/shm"))


def check_flat(use: Callable[[int], None], count: int, pids: list[int]) -> None:
    """`use` is given one session id after the other."""
    for session_id in range(WARM):
        use(session_id)
    before = footprint(pids)
    for session_id in range(WARM, WARM + count):
        use(session_id)
    after = footprint(pids)
    assert after[0] - before[0] < GROWTH_BYTES
    assert after[1:] == before[1:]


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_sessions_of_a_store_leave_nothing(rng: np.random.Generator, count: int) -> None:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(there,), daemon=True)
    process.start()
    there.close()
    link = Asker(MailboxLink(here.recv()))
    rows = rng.standard_normal((2 * BLOCKS, 2, 64)).astype(np.float16)
    queries, limits = rng.standard_normal((1, 4, 64)).astype(np.float32), np.full(1, BLOCKS, np.int32)

    def use(session_id: int) -> None:
        link.open(session_id, BLOCKS)
        for layer in range(2):
            link.write(session_id, layer, 0, rows, rows)
            link.commit(session_id, layer, 0, len(rows))
            for k in (1, 9):
                link.submit_select(
                    SelectRequest(session_id, layer, queries, 1, limits, k, True, 0.1, pooling=HeadPool.SUM)
                )()
        link.drop(session_id)

    try:
        check_flat(use, count, [os.getpid(), link.pid])
        assert link.stats().free_pages == 2 * BLOCKS
    finally:
        link.close()
        here.close()
        process.join(60)
    assert process.exitcode == 0


@pytest.mark.parametrize("count", [60, pytest.param(1_000, marks=pytest.mark.slow)])
def test_sessions_of_an_engine_leave_nothing(tmp_path: Path, count: int) -> None:
    model = build_tiny_checkpoint("llama3", tmp_path)
    driver = Driver(model.directory, model.spec, num_pages=32)
    axes = memory(topk=2, execution_block=16, scheme=Positions.CLAMPED)
    prompt = list(range(2, 92))
    check_flat(lambda session_id: driver.generate(prompt, axes, (64,), 4, session_id), count, [os.getpid()])
    assert not driver.worker.engine.sessions
