"""Decode attention over blocks in host memory: KV heads side by side, entries split where heads are too few."""

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
    query: torch.Tensor,
    blocks: torch.Tensor,
    entries: Arrays,
    rotations: Arrays,
    scale: float,
    softcap: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See the package; entries are (slot, begin, end), rotations the five arrays in the order of its arguments."""
    _, _, num_kv_heads, block_size, dim = blocks.shape
    slot, begin, end = entries
    check_multiple("head size", dim, 2 * LANES)
    check_ids("slot", slot, len(blocks))
    if len(slot) and not (begin.min() >= 0 and end.max() <= block_size):
        raise ValueError(f"rows {begin.min()} to {end.max()}; expected 0 to {block_size}")
    if blocks.stride()[3:] != (dim, 1):
        raise ValueError(
            f"blocks of strides {blocks.stride()}: the rows of a head must lie behind one another"
        )
    strides = blocks.stride()
    offset = slot.astype(np.int64) * strides[0]
    num_bytes = 2 * len(slot) * num_kv_heads * block_size * dim * blocks.itemsize
    scaling = np.float32(scale), np.float32(softcap)
    problem = (_flat(blocks), strides[2], strides[1], offset, (begin, end), rotations, *scaling)
    return _attend(query.detach().contiguous().numpy(), num_kv_heads, problem, num_bytes)


def _attend(
    query: Any, num_kv_heads: int, problem: Arrays, num_bytes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    out, lse = np.empty(query.shape, np.float32), np.empty(len(query), np.float32)
    workers = num_workers(num_bytes)
    if workers > 1:
        splits = min(-(-workers // num_kv_heads), len(problem[3]))
        attend_parallel(query, num_kv_heads, problem, splits, out, lse)
    else:
        attend_serial(query, num_kv_heads, problem, out, lse)
    return torch.from_numpy(out), torch.from_numpy(lse)


def _flat(blocks: torch.Tensor) -> Any:
    """The memory from the first element to the last as one flat array of stored elements; no copy."""
    size = 1 + sum((count - 1) * stride for count, stride in zip(blocks.shape, blocks.stride(), strict=True))
    flat = blocks.as_strided((size if blocks.numel() else 0,), (1,)).numpy()
    return flat.view(np.uint16) if flat.dtype == np.float16 else flat


@njit(**SERIAL)
def attend_serial(query: Any, num_kv_heads: Any, problem: Any, out: Any, lse: Any) -> None:
    stored, to_head, to_values, offset, rows, rotations, scale, softcap = problem
    group, count = len(query) // num_kv_heads, len(offset)
    for head in range(num_kv_heads):
        a, b = head * group, (head + 1) * group
        attend_head(
            query[a:b], stored, head * to_head, to_values, offset, rows, np.int64(0), count, rotations, scale,
            softcap, out[a:b], lse[a:b],
        )  # fmt: skip


@njit(**PARALLEL)
def attend_parallel(query: Any, num_kv_heads: Any, problem: Any, splits: Any, out: Any, lse: Any) -> None:
    stored, to_head, to_values, offset, rows, rotations, scale, softcap = problem
    group, count = len(query) // num_kv_heads, len(offset)
    outs = np.empty((splits, *query.shape), np.float32)
    lses = np.empty((splits, len(query)), np.float32)
    for item in prange(num_kv_heads * splits):
        head, part = item // splits, item % splits
        a, b = head * group, (head + 1) * group
        first, last = count * part // splits, count * (part + 1) // splits
        attend_head(
            query[a:b], stored, head * to_head, to_values, offset, rows, first, last, rotations, scale, softcap,
            outs[part, a:b], lses[part, a:b],
        )  # fmt: skip
    _merge(outs, lses, out, lse)


@njit(**SERIAL)
def _merge(outs: Any, lses: Any, out: Any, lse: Any) -> None:
    """Joins the parts of every query head by their log-sum-exp."""
    for head in range(len(lse)):
        peak, total = np.float32(-np.inf), np.float32(0)
        for part in range(len(lses)):
            peak = max(peak, lses[part, head])
        out[head] = 0
        if peak == -np.inf:
            lse[head] = peak
            continue
        for part in range(len(lses)):
            weight = exp32(lses[part, head] - peak)
            total += weight
            out[head] += weight * outs[part, head]
        out[head] *= 1 / total
        lse[head] = peak + np.log(total)
