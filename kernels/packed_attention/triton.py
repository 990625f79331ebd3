"""Decode attention over packed blocks on the GPU: split-K over lists of entries, as `block_attention` over slots.

Tiles of keys and values are expanded in registers, outliers put in their places, and multiplied there: no block is
ever written to memory in fp16. Blocks may lie on the device, or in mapped pinned memory of the host, whose link
then carries each packed block once for each step. See `block_attention/triton.py` for lists and entries.
"""

from __future__ import annotations

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
    rotated_query,
    softmax_step,
    store_share,
    tile_rows,
)
from moorage.kernels.merge_lse.triton import merge_lse
from moorage.kernels.packed_blocks.layout import PackedLayout
from moorage.kernels.packed_blocks.triton import (
    DeviceTables,
    key_rows,
    key_statistics,
    lanes,
    numbers_of,
    outlier_list,
    outliers_of_rows,
    pad_of_list,
    raw_codes,
    rows_of_list,
    value_rows,
    value_statistics,
    with_outliers,
)
from moorage.kernels.triton_support import power_of_2


@triton.jit
def _with_key_outliers(
    keys,
    rows,
    outliers,
    FIRST: tl.constexpr,
    COUNT: tl.constexpr,
    PAD: tl.constexpr,
    LAYOUT: tl.constexpr,
):
    """Keys [T, PAD] of channels with their outliers (places, exact numbers, begin, end)."""
    if LAYOUT.capacity > 0:
        channel, is_one = lanes(FIRST, COUNT, PAD, LAYOUT)
        places, exact, begin, end = outliers
        keys = with_outliers(keys, rows, channel, is_one, places, exact, begin, end, LAYOUT)
    return keys


@triton.jit(do_not_specialize=["capacity", "first_head"])
def _attend_packed(
    queries,
    stored,
    key_levels,
    value_levels,
    key_scale,
    key_zero,
    entries,
    capacity,
    first,
    first_head,
    turn_cos,
    turn_sin,
    offset_cos,
    offset_sin,
    out,
    lse,
    scale,
    softcap,
    LAYOUT: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HALF: tl.constexpr,
    LISTS: tl.constexpr,
    TILE: tl.constexpr,
    PAD_GROUP: tl.constexpr,
    PAD_DIM: tl.constexpr,
    PAD_HALF: tl.constexpr,
    PAD_REST: tl.constexpr,
    PAD_LIST: tl.constexpr,
    OPERAND: tl.constexpr,
    CAPPED: tl.constexpr,
):
    split, head, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    num_splits = tl.num_programs(0)
    DIM: tl.constexpr = LAYOUT.head_dim
    BLOCK: tl.constexpr = LAYOUT.block_size
    NUM_HEADS: tl.constexpr = NUM_KV_HEADS * GROUP
    TILES: tl.constexpr = (BLOCK + TILE - 1) // TILE
    REST: tl.constexpr = DIM - 2 * HALF

    list_id = row * LISTS + head * LISTS // NUM_KV_HEADS
    begin_of_list = tl.load(first + list_id)
    share = tl.cdiv(tl.load(first + list_id + 1) - begin_of_list, num_splits)
    start = begin_of_list + split * share
    end = tl.minimum(start + share, tl.load(first + list_id + 1))

    g = tl.arange(0, PAD_GROUP)
    t = tl.arange(0, TILE)
    channel, is_one = lanes(0, DIM, PAD_DIM, LAYOUT)
    in_group = g < GROUP
    stored_head = first_head + head
    peak = tl.full([PAD_GROUP], -float("inf"), tl.float32)
    total = tl.zeros([PAD_GROUP], tl.float32)
    sums = tl.zeros([PAD_GROUP, PAD_DIM], tl.float32)
    if HALF > 0 and TILES == 1:
        cos = angles(offset_cos, t, BLOCK, HALF, PAD_HALF)
        sin = angles(offset_sin, t, BLOCK, HALF, PAD_HALF)

    for e in range(start, end):
        entry = entries + e
        begin_row, end_row = tl.load(entry + capacity), tl.load(entry + 2 * capacity)
        query = queries + (tl.load(entry + 3 * capacity).to(tl.int64) * NUM_HEADS + head * GROUP) * DIM
        page = stored + tl.load(entry).to(tl.int64) * LAYOUT.block_bytes
        if LAYOUT.capacity > 0:
            places, exact, num_keys, num_values = outlier_list(page, stored_head, LAYOUT)
            listed_rows = rows_of_list(places, PAD_LIST, LAYOUT)
        if HALF > 0:
            turn, rotates = tl.load(entry + 4 * capacity), tl.load(entry + 5 * capacity) != 0
            query_low, query_high = rotated_query(
                query, g, in_group, turn, turn_cos, turn_sin, DIM, HALF, PAD_HALF
            )
            c, is_low = lanes(0, HALF, PAD_HALF, LAYOUT)
            low_scale, low_zero = key_statistics(page, stored_head, key_scale, key_zero, c, is_low, LAYOUT)
            c, is_high = lanes(HALF, HALF, PAD_HALF, LAYOUT)
            high_scale, high_zero = key_statistics(page, stored_head, key_scale, key_zero, c, is_high, LAYOUT)
        if REST > 0:
            c, is_rest = lanes(2 * HALF, REST, PAD_REST, LAYOUT)
            rest_scale, rest_zero = key_statistics(page, stored_head, key_scale, key_zero, c, is_rest, LAYOUT)
            query_rest = tl.load(
                query + g[:, None] * DIM + c[None, :], mask=in_group[:, None] & is_rest[None, :], other=0.0
            )

        for tile in range(begin_row // TILE, tl.cdiv(end_row, TILE)):
            rows = tile * TILE + t
            seen = (rows >= begin_row) & (rows < end_row)
            # All that a tile has in memory is asked for before any of it is used.
            key_row = key_rows(page, stored_head, rows, LAYOUT)
            if HALF > 0:
                low_codes = raw_codes(key_row, seen, 0, HALF, PAD_HALF, LAYOUT)
                high_codes = raw_codes(key_row, seen, HALF, HALF, PAD_HALF, LAYOUT)
            if REST > 0:
                rest_codes = raw_codes(key_row, seen, 2 * HALF, REST, PAD_REST, LAYOUT)
            value_row = value_rows(page, stored_head, rows, LAYOUT)
            value_codes = raw_codes(value_row, seen, 0, DIM, PAD_DIM, LAYOUT)
            scale_of_row, zero_of_row = value_statistics(page, stored_head, rows, seen, LAYOUT)
            if LAYOUT.capacity > 0:
                begin, stop = outliers_of_rows(listed_rows, 0, num_keys, tile * TILE, TILE, PAD_LIST)
                of_keys = (places, exact, begin, stop)
            else:
                of_keys = (page, page, 0, 0)  # which nobody reads

            logits = tl.zeros([PAD_GROUP, TILE], tl.float32)
            if HALF > 0:
                low = numbers_of(
                    low_codes, key_levels, low_scale[None, :], low_zero[None, :], 0, HALF, PAD_HALF, LAYOUT
                )
                low = _with_key_outliers(low, rows, of_keys, 0, HALF, PAD_HALF, LAYOUT)
                high = numbers_of(
                    high_codes,
                    key_levels,
                    high_scale[None, :],
                    high_zero[None, :],
                    HALF,
                    HALF,
                    PAD_HALF,
                    LAYOUT,
                )
                high = _with_key_outliers(high, rows, of_keys, HALF, HALF, PAD_HALF, LAYOUT)
                if TILES > 1:
                    cos = angles(offset_cos, rows, BLOCK, HALF, PAD_HALF)
                    sin = angles(offset_sin, rows, BLOCK, HALF, PAD_HALF)
                logits = add_logits(logits, query_low, query_high, low, high, cos, sin, rotates, OPERAND)
            if REST > 0:
                rest = numbers_of(
                    rest_codes,
                    key_levels,
                    rest_scale[None, :],
                    rest_zero[None, :],
                    2 * HALF,
                    REST,
                    PAD_REST,
                    LAYOUT,
                )
                rest = _with_key_outliers(rest, rows, of_keys, 2 * HALF, REST, PAD_REST, LAYOUT)
                logits = tl.dot(
                    query_rest.to(OPERAND), tl.trans(rest.to(OPERAND)), logits, input_precision="ieee"
                )

            weights, highest, shrink = softmax_step(logits, seen, peak, scale, softcap, CAPPED)
            value = numbers_of(
                value_codes,
                value_levels,
                scale_of_row[:, None],
                zero_of_row[:, None],
                0,
                DIM,
                PAD_DIM,
                LAYOUT,
            )
            if LAYOUT.capacity > 0:
                begin, stop = outliers_of_rows(
                    listed_rows, num_keys, num_keys + num_values, tile * TILE, TILE, PAD_LIST
                )
                value = with_outliers(value, rows, channel, is_one, places, exact, begin, stop, LAYOUT)
            sums = tl.dot(
                weights.to(OPERAND), value.to(OPERAND), sums * shrink[:, None], input_precision="ieee"
            )
            total = total * shrink + tl.sum(weights, axis=1)
            peak = highest

    heads = (split * tl.num_programs(2) + row).to(tl.int64) * NUM_HEADS + head * GROUP + g
    store_share(out, lse, heads, in_group, channel, is_one, sums, total, peak, DIM)


def attend_packed_lists(
    layout: PackedLayout,
    tables: DeviceTables,
    queries: torch.Tensor,
    stored: torch.Tensor,
    entries: torch.Tensor,
    first: torch.Tensor,
    turns: Turns,
    scale: float,
    num_rows: int,
    num_splits: int,
    *,
    kv_head: int | None = None,
    exact: bool = False,
    softcap: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`attend_lists` over packed blocks: (out [R, Hq, D], lse [R, Hq]) in fp32, without a wait.

    stored uint8 [P, block_bytes] begins at a multiple of 64 bytes, on the device or in mapped pinned memory of the
    host; everything else lies on the device. The slot of an entry is a page of `stored`. With `kv_head`, the queries
    are those of this KV head alone. Products are of fp16, or of fp32 where `exact`.
    """
    num_heads, dim = queries.shape[1:]
    num_kv_heads = layout.num_kv_heads if kv_head is None else 1
    half, group = turns.cos.shape[1], num_heads // num_kv_heads
    assert stored.is_contiguous()
    assert stored.dtype == torch.uint8
    assert stored.shape[1:] == (layout.block_bytes,)
    assert entries.shape[0] == ENTRY_FIELDS
    assert entries.is_contiguous()
    assert queries.is_contiguous()
    assert dim == layout.head_dim
    outs = torch.empty((num_splits, num_rows, num_heads, dim), dtype=torch.float32, device=queries.device)
    lses = torch.empty((num_splits, num_rows, num_heads), dtype=torch.float32, device=queries.device)
    padded_dim = power_of_2(dim, MIN_ROWS)
    _attend_packed[(num_splits, num_kv_heads, num_rows)](
        queries,
        stored,
        *tables,
        entries,
        entries.shape[1],
        first,
        kv_head or 0,
        turns.cos,
        turns.sin,
        turns.offset_cos,
        turns.offset_sin,
        outs,
        lses,
        scale,
        softcap,
        layout,
        num_kv_heads,
        group,
        half,
        (len(first) - 1) // num_rows,
        tile_rows(dim, layout.block_size),
        power_of_2(group, MIN_ROWS),
        padded_dim,
        power_of_2(half, MIN_ROWS),
        power_of_2(dim - 2 * half, MIN_ROWS),
        pad_of_list(layout),
        OPERANDS[torch.float32 if exact else torch.float16],
        softcap > 0,
        num_warps=8,
        num_stages=2,
    )
    return merge_lse(outs, lses)
