"""Compiles a worker's CPU kernels for the types that serving uses, or loads them from the disk cache."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from moorage.kernels.block_attention import attend_blocks
from moorage.kernels.block_attention.resident import attend_resident
from moorage.kernels.compile_lock import one_at_a_time
from moorage.kernels.logit_rows import summarise_rows
from moorage.kernels.merge_top import merge_top
from moorage.kernels.numba_flags import always_parallel
from moorage.kernels.rotation import rotate_each, rotate_heads
from moorage.workers.gpu.engine.warm_up_decode import warm_up_decode
from moorage.workers.gpu.engine.warm_up_prefill import warm_up_prefill
from moorage.workers.gpu.model.weights import resolve_dtype
from moorage.workers.gpu.settings import WorkerSettings
from moorage.workers.gpu.transfer.block_loader import storage_dtype
from moorage.workers.gpu.transfer.copy_engine import as_storage_array
from moorage.workers.kv.arena import Arena
from moorage.workers.kv.formats import format_of
from moorage.workers.kv.warm_up import LOCK, warm_up_keys
from moorage.workers.kv.warm_up import warm_up as warm_up_selection
from moorage.workers.spec import KvLayout


def warm_up(settings: WorkerSettings, device: torch.device, num_shards: int) -> None:
    """Warms up all kernels of a worker on `device`.

    Kernels that the KV actors of this host compile too come last, so that the worker finds them in the cache.
    """
    spec, layout = settings.spec, settings.layout
    in_place = device.type == "cpu" and settings.engine.in_place
    if device.type == "cpu" or settings.engine.attend_on == "cpu":
        with one_at_a_time("worker-kernels"):
            if in_place and format_of(layout.kv_type).is_native:
                warm_up_decode(layout, spec.group_size, spec.rope.rotary_dim)
            _attend(layout, spec.group_size, spec.rope.rotary_dim, num_shards)
            if device.type == "cpu":
                summarise_rows(np.zeros((1, 1), np.float32))
                warm_up_prefill(resolve_dtype(settings.dtype, spec))
    if in_place:
        warm_up_selection(layout)
    with one_at_a_time(LOCK):
        if layout.anchor_type.codes_keys and not in_place:
            _in_both_ways(lambda: warm_up_keys(layout, spec.group_size))
        _use_stores(layout, spec.group_size, spec.rope.rotary_dim, num_shards)


def _use_stores(layout: KvLayout, group_size: int, rotary_dim: int, num_shards: int) -> None:
    """Rotates queries, merges selections of several shards, writes rows to a store's memory and copies from it."""
    arena, first, stored = Arena(layout, 1), np.zeros(1, np.int32), format_of(layout.kv_type)
    angles, out = np.zeros(rotary_dim // 2, np.float32), np.zeros((1, 2, *layout.block_shape), stored.storage)
    query = np.zeros((layout.num_kv_heads * group_size, layout.head_dim), np.float32)

    def use() -> None:
        rotate_heads(query, angles, angles)
        rotate_each(query[None], angles[None], angles[None])
        for dtype in (stored.storage, np.dtype(np.float32)):
            row = np.zeros((1, layout.num_kv_heads, layout.head_dim), dtype)
            stored.encode(arena.kv[0], first, 0, row, row)
        arena.decode(0, first, out, first)
        if num_shards > 1:
            merge_top(np.zeros((num_shards, 1, 1), np.int32), np.zeros((num_shards, 1, 1), np.float32), 1, 1)

    _in_both_ways(use)
    arena.close()


def _attend(layout: KvLayout, group_size: int, rotary_dim: int, num_shards: int) -> None:
    """Attends one block in host memory and one in a device slot."""
    half, shape = rotary_dim // 2, layout.block_shape
    copied = torch.zeros((1, 2, *shape), dtype=storage_dtype(layout.kv_type))
    query = np.zeros((layout.num_kv_heads * group_size, layout.head_dim), np.float32)
    memories, none = (as_storage_array(copied).reshape(-1),) * num_shards, np.zeros(1, np.int32)
    sizes = np.zeros(num_shards, np.int64)
    angles, offsets = np.zeros((1, half), np.float32), np.zeros((layout.block_size, half), np.float32)
    rotations = angles, angles, np.ones(1, np.uint8), offsets, offsets

    def use() -> None:
        attend_resident(
            query, memories, (none,) * num_shards, sizes, 0, 1, shape, none, (none, none), rotations, 1.0
        )
        cos, sin, rotate_keys, offset_cos, offset_sin = rotations
        attend_blocks(
            torch.from_numpy(query),
            copied,
            slot=none,
            begin=none,
            end=none,
            angle_cos=cos,
            angle_sin=sin,
            rotate_keys=rotate_keys,
            offset_cos=offset_cos,
            offset_sin=offset_sin,
            scale=1.0,
        )

    _in_both_ways(use)


def _in_both_ways(use: Callable[[], None]) -> None:
    """Runs `use` on one thread, and in parallel: these are kernels of their own."""
    use()
    with always_parallel():
        use()
