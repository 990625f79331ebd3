"""Decode attention over blocks in host memory, on all cores: heads side by side, entries split when heads are few."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit, prange

from moorage.kernels.block_attention.head import attend_head
from moorage.kernels.checks import check_ids, check_multiple
from moorage.kernels.numba_flags import PARALLEL, SERIAL, num_workers
from moorage.kernels.simd import LANES
from moorage.kernels.vector_math import exp32

Arrays = tuple[Any, ...]


def attend_blocks(
    query: torch.Tensor, blocks: torch.Tensor, entries: Arrays, rotations: Arrays, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """See the package; entries are (slot, begin, end), rotations the five arrays in the order of its arguments."""
    _, _, num_kv_heads, block_size, dim = blocks.shape
    slot, begin, end = entries
    check_multiple("head size", dim, LANES)
    check_ids("slot", slot, len(blocks))
    if len(slot) and not (begin.min() >= 0 and end.max() <= block_size):
        raise ValueError(f"rows {begin.min()} to {end.max()}; expected 0 to {block_size}")
    if blocks.stride()[3:] != (dim, 1):
        raise ValueError(f"blocks of strides {blocks.stride()}: the rows of a head must lie behind one another")
    out, lse = np.empty(query.shape, np.float32), np.empty(len(query), np.float32)
    num_rows = len(slot) * block_size
    workers = num_workers(2 * num_rows * num_kv_heads * dim * blocks.itemsize)
    splits = min(-(-workers // num_kv_heads), len(slot))
    attend = _attend_parallel if workers > 1 and splits else _attend_serial
    attend(query.contiguous().numpy(), _flat(blocks), blocks.stride()[:3], entries, rotations, scale, splits, out, lse)
    return torch.from_numpy(out), torch.from_numpy(lse)


def _flat(blocks: torch.Tensor) -> Any:
    """The memory from the first element on as one flat array of stored elements; no copy."""
    size = sum((count - 1) * stride for count, stride in zip(blocks.shape, blocks.stride(), strict=True)) + 1
    flat = blocks.as_strided((size if blocks.numel() else 0,), (1,)).numpy()
    return flat.view(np.uint16) if flat.dtype == np.float16 else flat


@njit(**SERIAL)
def _attend_serial(
    query: Any, stored: Any, strides: Any, entries: Any, rotations: Any, scale: Any, _splits: Any, out: Any, lse: Any
) -> None:
    num_kv_heads = strides[1] // max(strides[2], 1)
    group = len(query) // num_kv_heads
    for head in range(num_kv_heads):
        heads = slice(head * group, (head + 1) * group)
        attend_head(
            query[heads], stored, head * strides[2], strides[0], strides[1], entries, 0, len(entries[0]), rotations,
            scale, out[heads], lse[heads],
        )  # fmt: skip
