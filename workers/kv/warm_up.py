"""Compiles, or loads from the disk cache, every kernel that a KV store uses."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np

from moorage.kernels.compile_lock import one_at_a_time
from moorage.kernels.numba_flags import in_both_ways
from moorage.workers.kv.arena import Arena
from moorage.workers.kv.formats import format_of
from moorage.workers.kv.mapped_shard import MappedShard
from moorage.workers.kv.messages import AnchorRotation, KeyRequest, SelectRequest
from moorage.workers.kv.store import KvStore
from moorage.workers.spec import HeadPool, KvLayout, Scorer

LOCK = "kv-kernels"
"""Held by the process that compiles what all who use a store need."""
NUM_BLOCKS = 4


def warm_up(layout: KvLayout) -> None:
    """Runs each kernel, alone and in parallel, on a store of one layer and a few blocks.

    Actors that start together do so one after the other, so that only the first has anything to compile.
    """
    with one_at_a_time(LOCK):
        in_both_ways(lambda: _run_each(layout))


def _run_each(layout: KvLayout) -> None:
    num_pages = NUM_BLOCKS + layout.open_pages + layout.sink_pages
    store = KvStore(replace(_one_layer(layout), scorer=Scorer.NUMBA), num_pages)
    shape = (NUM_BLOCKS * layout.block_size, layout.num_kv_heads, layout.head_dim)
    store.open(0, NUM_BLOCKS, AnchorRotation(np.zeros(1)))
    for dtype in (np.float32, np.float16):
        rows = np.zeros(shape, dtype)
        store.append(0, 0, 0, rows, rows)
    if layout.anchor_type.needs_importance:
        store.rebuild_anchors(0, 0, 0, np.zeros((1, layout.num_kv_heads, layout.block_size), np.float32))
    # Two rows, so that a batch of selections is made in parallel whatever the number of heads.
    limits = np.full(2, NUM_BLOCKS, np.int32)
    queries = np.zeros((2, *shape[1:]), np.float32)
    for shared, pooling in product((False, True), (HeadPool.SOFTMAX, HeadPool.SUM)):
        store.shard.select(SelectRequest(0, 0, queries, 0, limits, 1, shared, 1.0, pooling=pooling))
    out = np.empty((NUM_BLOCKS, 2, *layout.block_shape), format_of(layout.kv_type).storage)
    blocks = np.arange(NUM_BLOCKS, dtype=np.int32)
    store.shard.gather(0, 0, blocks, out, blocks)
    store.close()


def warm_up_keys(layout: KvLayout, group_size: int) -> None:
    """Runs the selection of single keys, for a worker that does it in memory that it maps."""
    size, num_heads = layout.block_size, layout.num_kv_heads * group_size
    shard = MappedShard(Arena(_one_layer(layout), 1), "warmed up")
    shard.open(0, np.zeros(1, np.int32), [size], [1])
    queries, near = np.zeros((1, num_heads, layout.head_dim), np.float32), np.zeros(num_heads, np.float32)
    bounds = np.array([0, 1], np.int32)
    shard.select_keys([KeyRequest(0, 0, queries, bounds, near, 1, 1.0, with_rows=True)])
    shard.close()


def _one_layer(layout: KvLayout) -> KvLayout:
    """The first layer alone."""
    return replace(layout, num_layers=1, layer_kv_types=layout.layer_kv_types[:1])
