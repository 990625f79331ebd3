"""Compiles a worker's CPU kernels for the types that serving uses, or loads them from the disk cache."""

from __future__ import annotations

import numpy as np
import torch

from moorage.kernels.compile_lock import one_at_a_time
from moorage.kernels.merge_top import merge_top
from moorage.kernels.numba_flags import in_both_ways
from moorage.kernels.rotation import rotate_each, rotate_heads
from moorage.workers.gpu.engine.compiling_process import compiling_process
from moorage.workers.gpu.engine.kernel_uses import KernelNeeds, kernel_uses
from moorage.workers.gpu.settings import WorkerSettings
from moorage.workers.kv.arena import Arena
from moorage.workers.kv.formats import format_of
from moorage.workers.kv.mapped_shard import MappedShard
from moorage.workers.kv.warm_up import LOCK, warm_up_keys
from moorage.workers.kv.warm_up import warm_up as warm_up_selection
from moorage.workers.spec import KvLayout


def warm_up(settings: WorkerSettings, device: torch.device, num_shards: int) -> None:
    """Warms up all kernels of a worker on `device`.

    Kernels that the KV actors of this host compile too come last, so that the worker finds them in the cache.
    """
    needs = KernelNeeds.of(settings, device, num_shards)
    uses = kernel_uses(needs)
    if uses:
        with compiling_process(needs):
            for use in uses:
                use()
    if needs.in_place:
        warm_up_selection(needs.layout)
    with one_at_a_time(LOCK):
        if needs.layout.anchor_type.codes_keys and not needs.in_place:
            in_both_ways(lambda: warm_up_keys(needs.layout, needs.group_size))
        _use_stores(needs.layout, needs.group_size, needs.rotary_dim, num_shards)


def _use_stores(layout: KvLayout, group_size: int, rotary_dim: int, num_shards: int) -> None:
    """Rotates queries, merges selections of several shards, writes rows to a store's memory and copies from it."""
    storage, angles = format_of(layout.kv_type).storage, np.zeros(rotary_dim // 2, np.float32)
    out, first = np.zeros((1, 2, *layout.block_shape), storage), np.zeros(1, np.int32)
    shard = MappedShard(Arena(layout, 1 + layout.open_pages), "warmed up")
    shard.open(0, first, open_pages=np.arange(1, 1 + layout.open_pages, dtype=np.int32))
    query = np.zeros((layout.num_kv_heads * group_size, layout.head_dim), np.float32)

    def use() -> None:
        rotate_heads(query, angles, angles)
        rotate_each(query[None], angles[None], angles[None])
        for dtype in (storage, np.dtype(np.float32)):
            rows = np.zeros((layout.block_size, layout.num_kv_heads, layout.head_dim), dtype)
            for some in (rows[:1], rows) if layout.is_packed else (rows[:1],):
                shard.write(0, 0, 0, some, some)
            shard.close_block(0, 0)
        shard.gather(0, 0, first, out, first)
        if num_shards > 1:
            merge_top(np.zeros((num_shards, 1, 1), np.int32), np.zeros((num_shards, 1, 1), np.float32), 1, 1)

    in_both_ways(use)
    shard.close()
