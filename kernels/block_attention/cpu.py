"""Decode attention over blocks in host memory: KV heads side by side, entries split where heads are too few."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from moorage.kernels.block_attention.head import attend_head
from moorage.kernels.checks import check_ids, check_multiple
from moorage.kernels.compiling import njit
from moorage.kernels.numba_flags import SERIAL, num_workers
from moorage.kernels.simd import LANES
from moorage.kernels.thread_team import run_units, team_of, unit_call
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
    splits = max(1, min(-(-workers // num_kv_heads), len(problem[3])))
    attend(team_of(workers), query, num_kv_heads, problem, splits, out, lse)
    return torch.from_numpy(out), torch.from_numpy(lse)


def _flat(blocks: torch.Tensor) -> Any:
    """The memory from the first element to the last as one flat array of stored elements; no copy."""
    size = 1 + sum((count - 1) * stride for count, stride in zip(blocks.shape, blocks.stride(), strict=True))
    flat = blocks.as_strided((size if blocks.numel() else 0,), (1,)).numpy()
    return flat.view(np.uint16) if flat.dtype == np.float16 else flat


@njit(**SERIAL)
def attend(
    team: Any, query: Any, num_kv_heads: Any, problem: Any, splits: Any, out: Any, lse: Any
) -> None:  # fmt: skip
    """Each KV head over each of `splits` equal shares of the entries, by the threads of a team."""
    outs, lses = out.reshape((1, *out.shape)), lse.reshape((1, len(lse)))
    if splits > 1:
        outs = np.empty((splits, *query.shape), np.float32)
        lses = np.empty((splits, len(query)), np.float32)
    run_units(
        team, num_kv_heads * splits, *unit_call(_attend_unit, (query, num_kv_heads, problem, outs, lses))
    )  # fmt: skip
    if splits > 1:
        _merge(outs, lses, out, lse)


@njit(**SERIAL)
def _attend_unit(unit: Any, query: Any, num_kv_heads: Any, problem: Any, outs: Any, lses: Any) -> None:
    stored, to_head, to_values, offset, rows, rotations, scale, softcap = problem
    group, count, splits = len(query) // num_kv_heads, len(offset), len(outs)
    head, part = divmod(unit, splits)
    a, b = head * group, (head + 1) * group
    first, last = count * part // splits, count * (part + 1) // splits
    attend_head(
        query[a:b], stored, head * to_head, to_values, offset, rows, first, last, rotations, scale, softcap,
        outs[part, a:b], lses[part, a:b],
    )  # fmt: skip


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
