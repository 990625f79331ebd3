"""Compiles, or loads from the disk cache, what a worker computes with on the CPU."""

from __future__ import annotations

import numpy as np
import torch

from moorage.kernels.block_attention.cpu import attend_blocks as attend_copied
from moorage.kernels.block_attention.resident import attend_resident
from moorage.kernels.merge_top import merge_top
from moorage.kernels.numba_flags import always_parallel
from moorage.kernels.rms_norm import add_rms_norm
from moorage.kernels.rotation import rotate_heads
from moorage.workers.gpu.reader import storage_dtype
from moorage.workers.kv.arena import Arena
from moorage.workers.spec import KvLayout


def warm_up_merge(num_shards: int) -> None:
    """Joins what shards chose, if there are several."""
    if num_shards > 1:
        merge_top(np.zeros((num_shards, 1, 1), np.int32), np.zeros((num_shards, 1, 1), np.float32), 1, 1)


def warm_up_attention(layout: KvLayout, group_size: int, rotary_dim: int, num_shards: int) -> None:
    """Norms, turns a query and attends a block of an empty arena, also in parallel, by the types that serving has.

    A block is attended where it lies, as a chosen one, and copied, as those that exact attention streams.
    """
    arena = Arena(layout, 1)
    heads = layout.num_kv_heads, layout.block_size, layout.head_dim
    query = np.zeros((layout.num_kv_heads * group_size, layout.head_dim), np.float32)
    memories, none = (arena.kv.reshape(-1),) * num_shards, np.zeros(1, np.int32)
    cos, offsets = (
        np.zeros((1, rotary_dim // 2), np.float32),
        np.zeros((heads[1], rotary_dim // 2), np.float32),
    )
    rotations = cos, cos, np.ones(1, np.uint8), offsets, offsets
    sizes = np.zeros(num_shards, np.int64)

    rows = torch.zeros((2, layout.head_dim))
    copied = torch.zeros((1, 2, *heads), dtype=storage_dtype(layout.kv_type))

    def attend() -> None:
        attend_resident(
            query, memories, (none,) * num_shards, sizes, 0, 1, heads, none, (none, none), rotations, 1.0
        )
        attend_copied(torch.from_numpy(query), copied, (none, none, none), rotations, 1.0)
        add_rms_norm(rows, rows, rows[0], 1.0)

    rotate_heads(query, cos[0], cos[0])
    attend()
    with always_parallel():
        attend()
    arena.close()
