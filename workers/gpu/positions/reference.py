"""Slow form of every position scheme, written pair by pair from the papers' formulas."""

from __future__ import annotations

import math

import torch

from moorage.workers.gpu.model.rope import RopeView
from moorage.workers.spec import MemorySpec, Positions


def pair_positions(memory: MemorySpec, block_size: int, query: int, key: int) -> tuple[int, int] | None:
    """Positions that a query and an earlier or equal key take for each other; None if the key is not seen.

    Selected blocks are not considered: with `topk` None every key is seen, with 0 the sinks and the window.
    """
    window = memory.retention.window
    sinks = -(-memory.retention.sinks // block_size) * block_size
    in_window = query - key < window
    if memory.selection.topk == 0 and not in_window and key >= sinks:
        return None
    match memory.positions.scheme:
        case Positions.ROPE:
            return query, key
        case Positions.CLAMPED:
            return (query, key) if in_window else (window - 1, 0)
        case Positions.ROLLING:
            # The cache holds the sinks and then the window; positions are places in it.
            dropped = max(0, query + 1 - sinks - window)
            return query - dropped, key if key < sinks else key - dropped
        case Positions.DCA:
            sizes = memory.positions.dual_chunk
            return _dual_chunk(sizes.length, sizes.chunk, query, key)


def _dual_chunk(c: int, s: int, query: int, key: int) -> tuple[int, int]:
    """Equations of section 3 of Dual Chunk Attention (arXiv 2402.17463)."""
    apart = query // s - key // s
    if apart == 0:
        return query % s, key % s
    if apart == 1:
        return min(s + query % s, c - 1), key % s
    return c - 1, key % s


def attend(
    memory: MemorySpec, block_size: int, view: RopeView, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> torch.Tensor:
    """Output [T, Hq, D] in fp64 of q [T, Hq, D] over k, v [T, Hkv, D], all un-rotated, of a whole sequence."""
    group = q.shape[1] // k.shape[1]
    queries, keys, values = q.double(), k.double().repeat_interleave(group, 1), v.double()
    values = values.repeat_interleave(group, 1)
    scale = view.attention_scale**2 / math.sqrt(q.shape[2])
    out = torch.zeros_like(queries)
    for i in range(len(queries)):
        pairs = [pair_positions(memory, block_size, i, j) for j in range(i + 1)]
        seen = [j for j, pair in enumerate(pairs) if pair is not None]
        turned, met = (
            _turn(x, torch.tensor([pair[side] for pair in pairs if pair is not None]), view)
            for side, x in ((0, queries[i].expand(len(seen), -1, -1)), (1, keys[seen]))
        )
        weights = torch.softmax((turned * met).sum(-1) * scale, dim=0)
        out[i] = (weights[..., None] * values[seen]).sum(0)
    return out


def _turn(x: torch.Tensor, positions: torch.Tensor, view: RopeView) -> torch.Tensor:
    """x [n, H, D] with row r at positions[r]: channel pairs (i, i + rd / 2) as complex numbers, the rest as is."""
    half = len(view.inv_freq)
    pairs = torch.complex(x[..., :half], x[..., half : 2 * half])
    turned = pairs * torch.exp(1j * positions[:, None].double() * view.inv_freq)[:, None]
    return torch.cat((turned.real, turned.imag, x[..., 2 * half :]), dim=-1)
