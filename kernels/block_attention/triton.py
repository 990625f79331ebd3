"""Decode attention over slots on the GPU: split-K over lists of entries, grouped queries, keys rotated on the fly.

Each program takes an even share of one list's tiles for the queries of one KV head; the shares are joined by their
log-sum-exp (FlashDecoding). A list may belong to a whole row of the batch or to one KV head of it. What an entry's
keys are met by is the row's query in one of several variants, rotated by a row of a table of block turns: under
RoPE the turn of the block's first position, so that no angle is ever made of a large position in fp32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl

from moorage.kernels.attention_steps.triton import (
    ENTRY_FIELDS,
    MIN_ROWS,
    OPERANDS,
    Turns,
    add_logits,
    angles,
    halves,
    rotated_query,
    softmax_step,
    splits_for,
    store_share,
    tile_rows,
)
from moorage.kernels.merge_lse.triton import merge_lse
from moorage.kernels.triton_support import power_of_2, upload

Arrays = tuple[Any, ...]


@triton.jit(do_not_specialize=["capacity"])
def _attend(
    queries,
    slots,
    slot_stride,
    part_stride,
    head_stride,
    entries,
    capacity,
    first,
    turn_cos,
    turn_sin,
    offset_cos,
    offset_sin,
    out,
    lse,
    scale,
    softcap,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    LISTS: tl.constexpr,
    TILE: tl.constexpr,
    PAD_GROUP: tl.constexpr,
    PAD_DIM: tl.constexpr,
    PAD_HALF: tl.constexpr,
    PAD_REST: tl.constexpr,
    OPERAND: tl.constexpr,
    CAPPED: tl.constexpr,
):
    split, head, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    num_splits = tl.num_programs(0)
    NUM_HEADS: tl.constexpr = NUM_KV_HEADS * GROUP
    TILES: tl.constexpr = (BLOCK + TILE - 1) // TILE
    REST: tl.constexpr = DIM - 2 * HALF

    list_id = row * LISTS + head * LISTS // NUM_KV_HEADS
    begin_of_list = tl.load(first + list_id)
    num_tiles = (tl.load(first + list_id + 1) - begin_of_list) * TILES
    share = tl.cdiv(num_tiles, num_splits)
    start = split * share
    end = tl.minimum(start + share, num_tiles)

    g = tl.arange(0, PAD_GROUP)
    t = tl.arange(0, TILE)
    channel = tl.arange(0, PAD_DIM)
    in_group = g < GROUP
    peak = tl.full([PAD_GROUP], -float("inf"), tl.float32)
    total = tl.zeros([PAD_GROUP], tl.float32)
    sums = tl.zeros([PAD_GROUP, PAD_DIM], tl.float32)
    if HALF > 0 and TILES == 1:
        cos = angles(offset_cos, t, BLOCK, HALF, PAD_HALF)
        sin = angles(offset_sin, t, BLOCK, HALF, PAD_HALF)

    for i in range(start, end):
        entry = entries + begin_of_list + i // TILES
        rows = (i % TILES) * TILE + t
        slot = tl.load(entry).to(tl.int64)
        seen = (rows >= tl.load(entry + capacity)) & (rows < tl.load(entry + 2 * capacity))
        query = queries + (tl.load(entry + 3 * capacity).to(tl.int64) * NUM_HEADS + head * GROUP) * DIM
        turn = tl.load(entry + 4 * capacity)
        rotates = tl.load(entry + 5 * capacity) != 0
        key = slots + slot * slot_stride + head * head_stride

        logits = tl.zeros([PAD_GROUP, TILE], tl.float32)
        if HALF > 0:
            query_low, query_high = rotated_query(
                query, g, in_group, turn, turn_cos, turn_sin, DIM, HALF, PAD_HALF
            )
            low, high = halves(key, rows, seen, DIM, HALF, PAD_HALF)
            if TILES > 1:
                cos = angles(offset_cos, rows, BLOCK, HALF, PAD_HALF)
                sin = angles(offset_sin, rows, BLOCK, HALF, PAD_HALF)
            logits = add_logits(logits, query_low, query_high, low, high, cos, sin, rotates, OPERAND)
        if REST > 0:
            c = 2 * HALF + tl.arange(0, PAD_REST)
            query_rest = tl.load(
                query + g[:, None] * DIM + c[None, :], mask=in_group[:, None] & (c < DIM)[None, :], other=0.0
            )
            key_rest = tl.load(
                key + rows[:, None] * DIM + c[None, :], mask=seen[:, None] & (c < DIM)[None, :], other=0.0
            )
            logits = tl.dot(
                query_rest.to(OPERAND), tl.trans(key_rest.to(OPERAND)), logits, input_precision="ieee"
            )

        weights, highest, shrink = softmax_step(logits, seen, peak, scale, softcap, CAPPED)
        value = tl.load(
            key + part_stride + rows[:, None] * DIM + channel[None, :],
            mask=seen[:, None] & (channel < DIM)[None, :],
            other=0.0,
        )
        sums = tl.dot(weights.to(OPERAND), value.to(OPERAND), sums * shrink[:, None], input_precision="ieee")
        total = total * shrink + tl.sum(weights, axis=1)
        peak = highest

    heads = (split * tl.num_programs(2) + row).to(tl.int64) * NUM_HEADS + head * GROUP + g
    store_share(out, lse, heads, in_group, channel, channel < DIM, sums, total, peak, DIM)


def attend_lists(
    queries: torch.Tensor,
    blocks: torch.Tensor,
    entries: torch.Tensor,
    first: torch.Tensor,
    turns: Turns,
    scale: float,
    num_rows: int,
    num_splits: int,
    *,
    exact: bool = False,
    softcap: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(out [R, Hq, D], lse [R, Hq]) in fp32 of R = `num_rows` queries, all arguments on one device, without a wait.

    queries f32 [rows of all variants, Hq, D]; blocks [S, 2, Hkv, B, D], its last two dimensions contiguous; entries
    int32 [6, N] hold slot, begin, end, query row, turn row and whether keys are rotated; first int32
    [R * lists + 1], where `lists` is 1 or Hkv, cuts the entries into lists. Counts are read on the device, so one
    launch serves any number of entries up to N. `exact` multiplies in fp32 instead of in the type of the blocks.
    See the package for `softcap`.
    """
    num_heads, dim = queries.shape[1:]
    _, _, num_kv_heads, block_size, _ = blocks.shape
    half = turns.cos.shape[1]
    group = num_heads // num_kv_heads
    lists = (len(first) - 1) // num_rows
    assert entries.shape[0] == ENTRY_FIELDS
    assert entries.is_contiguous()
    assert blocks.stride()[3:] == (dim, 1)
    outs = torch.empty((num_splits, num_rows, num_heads, dim), dtype=torch.float32, device=queries.device)
    lses = torch.empty((num_splits, num_rows, num_heads), dtype=torch.float32, device=queries.device)
    operand = torch.float32 if exact else blocks.dtype
    padded_dim = power_of_2(dim, MIN_ROWS)
    _attend[(num_splits, num_kv_heads, num_rows)](
        queries,
        blocks,
        *blocks.stride()[:3],
        entries,
        entries.shape[1],
        first,
        turns.cos,
        turns.sin,
        turns.offset_cos,
        turns.offset_sin,
        outs,
        lses,
        scale,
        softcap,
        num_kv_heads,
        group,
        dim,
        half,
        block_size,
        lists,
        tile_rows(dim, block_size),
        power_of_2(group, MIN_ROWS),
        padded_dim,
        power_of_2(half, MIN_ROWS),
        power_of_2(dim - 2 * half, MIN_ROWS),
        OPERANDS[operand],
        softcap > 0,
        num_warps=4 if padded_dim <= 128 else 8,
    )
    return merge_lse(outs, lses)


def attend_blocks(
    query: torch.Tensor,
    blocks: torch.Tensor,
    entries: Arrays,
    rotations: Arrays,
    scale: float,
    softcap: float = 0.0,
    *,
    exact: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See the package; entries are (slot, begin, end), rotations the five arrays in the order of its arguments."""
    slot, begin, end = entries
    angle_cos, angle_sin, rotate_keys, offset_cos, offset_sin = rotations
    count = len(slot)
    if not count:
        return torch.zeros_like(query), query.new_full(query.shape[:1], -torch.inf)
    number = np.arange(count, dtype=np.int32)
    packed = np.stack((slot, begin, end, np.zeros_like(number), number, rotate_keys.astype(np.int32)))
    arrays = (packed, np.array([0, count], np.int32), angle_cos, angle_sin, offset_cos, offset_sin)
    fields, first, *tables = upload(arrays, query.device)
    splits = splits_for(count, blocks.shape[2], query.device)
    out, lse = attend_lists(
        query.contiguous()[None],
        blocks,
        fields,
        first,
        Turns(*tables),
        scale,
        1,
        splits,
        exact=exact,
        softcap=softcap,
    )
    return out[0], lse[0]


__all__ = ["Turns", "attend_blocks", "attend_lists", "splits_for"]
