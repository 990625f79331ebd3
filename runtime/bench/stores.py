"""KV stores with content, in this process, in a process of their own, or in a Ray actor."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import numba
import numpy as np

from moorage.workers.kv.link import Link
from moorage.workers.kv.mailbox_link import MailboxLink
from moorage.workers.kv.mailbox_server import MailboxServer
from moorage.workers.kv.messages import Float32
from moorage.workers.kv.shards import ShardedKv
from moorage.workers.kv.store import KvStore
from moorage.workers.kv.warm_up import warm_up
from moorage.workers.spec import KvLayout

FILL_TOKENS = 16384
"""Rows written at once; the same random rows come again with another mean, so that no two blocks are equal."""
START_S = 120.0


class Content:
    """Keys and values as attention sees them: tokens of a block resemble each other, values are noise."""

    def __init__(self, layout: KvLayout, seed: int = 0) -> None:
        self._layout = layout
        self._rng = np.random.default_rng(seed)
        shape = (FILL_TOKENS, layout.num_kv_heads, layout.head_dim)
        self._noise = self._rng.standard_normal(shape, np.float32)
        dtype = np.dtype(layout.element)
        self._values = self._rng.standard_normal(shape, np.float32).astype(dtype)
        self._dtype = dtype

    def rows(self, count: int) -> tuple[Any, Any]:
        """K and V of `count` tokens, each [count, Hkv, D] in storage type."""
        layout = self._layout
        blocks = -(-count // layout.block_size)
        means = self._rng.standard_normal((blocks, 1, layout.num_kv_heads, layout.head_dim), np.float32)
        spread = np.broadcast_to(means, (blocks, layout.block_size, *means.shape[2:]))
        keys = self._noise[:count] + spread.reshape(-1, *means.shape[2:])[:count]
        return keys.astype(self._dtype), self._values[:count]


def fill(kv: ShardedKv, layout: KvLayout, session_id: int, num_tokens: int, seed: int = 0) -> None:
    """Appends `num_tokens` made-up tokens to an open, empty session in all layers."""
    for layer in range(layout.num_layers):
        content = Content(layout, seed * layout.num_layers + layer)
        for start in range(0, num_tokens, FILL_TOKENS):
            kv.append(session_id, layer, start, *content.rows(min(FILL_TOKENS, num_tokens - start)))


def random_queries(rows: int, heads: int, dim: int, seed: int = 0) -> Float32:
    """[rows, heads, dim]"""
    return np.random.default_rng(seed).standard_normal((rows, heads, dim), np.float32)


@contextmanager
def mailbox_store(layout: KvLayout, num_pages: int, threads: int) -> Iterator[Link]:
    """A link to a store in another process, through the mailbox; the process ends with the block."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, layout, num_pages, threads), daemon=True)
    process.start()
    there.close()
    try:
        if not here.poll(START_S):
            raise TimeoutError(f"the KV store's process did not start in {START_S:.0f} s")
        link = MailboxLink(here.recv())
        try:
            yield link
        finally:
            link.close()
    finally:
        here.close()
        process.join(10)
        if process.is_alive():
            process.kill()
            process.join()


def _serve(parent: Connection, layout: KvLayout, num_pages: int, threads: int) -> None:
    """The other process: serves until its parent closes the pipe or dies."""
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    warm_up(layout)
    store = KvStore(layout, num_pages)
    server = MailboxServer(store, num_threads=threads)
    parent.send(server.address)
    try:
        parent.recv()
    except EOFError:
        server.close()
        store.close()


@contextmanager
def ray_store(layout: KvLayout, num_pages: int, threads: int) -> Iterator[Link]:
    """A link to a store in a Ray actor, by calls; the private Ray ends with the block."""
    import ray

    from moorage.workers.kv.actor import start_kv_actor, stop_kv_actor
    from moorage.workers.kv.ray_link import RayLink
    from moorage.workers.ray_process import RayProcess

    ray.init(
        address="local",
        num_cpus=1,
        object_store_memory=256 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    try:
        handle = start_kv_actor(RayProcess("bench-kv", "moorage-bench"), layout, num_pages, threads)
        ray.get(handle.pid.remote(), timeout=START_S)
        yield RayLink(handle, layout, timeout_s=START_S)
        stop_kv_actor(handle)
    finally:
        ray.shutdown()
