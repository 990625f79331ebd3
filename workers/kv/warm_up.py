"""Compiles, or loads from the disk cache, every kernel that a KV store and its workers use."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np

from moorage.workers.kv.messages import AnchorRotation, SelectRequest
from moorage.workers.kv.store import KvStore
from moorage.workers.spec import HeadPool, KvLayout


def warm_up(layout: KvLayout) -> None:
    """Runs each kernel once on a store of one layer and one block."""
    store = KvStore(replace(layout, num_layers=1), 1)
    shape = (layout.block_size, layout.num_kv_heads, layout.head_dim)
    store.open(0, 1, AnchorRotation(np.zeros(1)))
    for dtype in (np.float32, np.float16):
        rows = np.zeros(shape, dtype)
        store.append(0, 0, 0, rows, rows)
    if layout.anchor_type.needs_importance:
        store.reanchor(0, 0, 0, np.zeros((1, layout.num_kv_heads, layout.block_size), np.float32))
    limits = np.ones(1, np.int32)
    queries = np.zeros((1, *shape[1:]), np.float32)
    for shared, pooling in product((False, True), (HeadPool.SOFTMAX, HeadPool.SUM)):
        store.select(SelectRequest(0, 0, queries, 0, limits, 1, shared, 1.0, pooling=pooling))
    out = np.empty_like(store.arena.kv[0])
    store.gather(0, 0, np.zeros(1, np.int32), out, np.zeros(1, np.int32))
    store.close()
