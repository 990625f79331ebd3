"""Steps of split-K attention: rotated tiles of queries and keys, the online softmax, and what a program leaves."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from moorage.kernels.softcap.triton import capped
from moorage.kernels.triton_support import SPLIT_WAVES, num_processors, power_of_2

MIN_ROWS = 16
"""Least side of a matrix product."""
TILE_ELEMENTS = 4096
"""Keys of a tile, whose two halves are held as fp32 while they are rotated: more would spill registers on Hopper."""
MOST_SPLITS = 128
ENTRY_FIELDS = 6
"""slot, begin, end, query row, turn row, whether keys are rotated."""
OPERANDS = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@dataclass(frozen=True, slots=True)
class Turns:
    """Rotation tables on the device, fp32; H is half of the rotated channels."""

    cos: torch.Tensor
    """[*, H]: an entry's query is rotated by one row."""
    sin: torch.Tensor
    offset_cos: torch.Tensor
    """[B, H]: a rotated key of row t of its block is rotated by row t."""
    offset_sin: torch.Tensor


def splits_for(num_entries: int, num_programs: int, device: torch.device) -> int:
    """Shares of each list that fill the device, where `num_programs` work on one share each.

    The number is a power of two. Each number of shares compiles a merge of its own, so there are few of them.
    """
    wanted = SPLIT_WAVES * num_processors(device) / max(num_programs, 1)
    nearest = 1 << max(0, round(math.log2(max(wanted, 1.0))))
    return min(nearest, power_of_2(num_entries), MOST_SPLITS)


def tile_rows(head_dim: int, block_size: int) -> int:
    """Rows of a block that a program attends at a time."""
    return max(MIN_ROWS, min(TILE_ELEMENTS // power_of_2(head_dim, MIN_ROWS), power_of_2(block_size)))


@triton.jit
def halves(base, rows, seen, DIM: tl.constexpr, HALF: tl.constexpr, PAD: tl.constexpr):
    """The two rotated halves [rows, PAD] of rows of DIM channels, as fp32; unseen rows are zero and not read."""
    c = tl.arange(0, PAD)
    at = base + rows[:, None] * DIM + c[None, :]
    mask = seen[:, None] & (c < HALF)[None, :]
    low = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    high = tl.load(at + HALF, mask=mask, other=0.0).to(tl.float32)
    return low, high


@triton.jit
def angles(at, rows, count, HALF: tl.constexpr, PAD: tl.constexpr):
    """Rows of a table [count, HALF], padded with zeros."""
    c = tl.arange(0, PAD)
    mask = (rows < count)[:, None] & (c < HALF)[None, :]
    return tl.load(at + rows[:, None] * HALF + c[None, :], mask=mask, other=0.0)


@triton.jit
def rotated_query(
    query, g, in_group, turn, turn_cos, turn_sin, DIM: tl.constexpr, HALF: tl.constexpr, PAD: tl.constexpr
):
    """The two halves [G, PAD] of a group's queries, rotated by row `turn` of the tables."""
    c = tl.arange(0, PAD)
    cos = tl.load(turn_cos + turn * HALF + c, mask=c < HALF, other=0.0)[None, :]
    sin = tl.load(turn_sin + turn * HALF + c, mask=c < HALF, other=0.0)[None, :]
    low, high = halves(query, g, in_group, DIM, HALF, PAD)
    return low * cos - high * sin, high * cos + low * sin


@triton.jit
def add_logits(logits, query_low, query_high, low, high, cos, sin, rotates, OPERAND: tl.constexpr):
    """Adds the products of rotated queries with keys [T, PAD], rotated by `cos`, `sin` [T, PAD] if `rotates`."""
    cos, sin = tl.where(rotates, cos, 1.0), tl.where(rotates, sin, 0.0)
    key_low, key_high = low * cos - high * sin, high * cos + low * sin
    logits = tl.dot(query_low.to(OPERAND), tl.trans(key_low.to(OPERAND)), logits, input_precision="ieee")
    return tl.dot(query_high.to(OPERAND), tl.trans(key_high.to(OPERAND)), logits, input_precision="ieee")


@triton.jit
def softmax_step(logits, seen, peak, scale, softcap, CAPPED: tl.constexpr):
    """(weights [G, T] of products, their highest logit or `peak`, the factor of what was summed before)."""
    logits = logits * scale
    if CAPPED:
        logits = capped(logits, softcap)
    logits = tl.where(seen[None, :], logits * 1.4426950408889634, -float("inf"))
    highest = tl.maximum(peak, tl.max(logits, axis=1))
    # While nothing is seen the peak is -inf, and a difference of infinities would be NaN.
    level = tl.where(highest == -float("inf"), 0.0, highest)
    return tl.exp2(logits - level[:, None]), highest, tl.exp2(peak - level)


@triton.jit
def store_share(out, lse, heads, in_group, channel, is_one, sums, total, peak, DIM: tl.constexpr):
    """Stores the mean of values [G, PAD] and the log-sum-exp of what a program has seen, 0 and -inf of nothing."""
    divisor = tl.where(total == 0, 1.0, total)
    tl.store(
        out + heads[:, None] * DIM + channel[None, :],
        sums / divisor[:, None],
        mask=in_group[:, None] & is_one[None, :],
    )
    tl.store(lse + heads, (peak + tl.log2(divisor)) * 0.6931471805599453, mask=in_group)
