"""Packed blocks expanded to fp16 by the GPU, out of mapped pinned memory of the host or out of its own.

Read from the host, a block crosses the link as it is packed: 2 to 7 times fewer bytes than it is expanded to.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from moorage.kernels.packed_blocks.layout import PackedLayout
from moorage.kernels.packed_blocks.triton import (
    DeviceTables,
    key_rows,
    key_statistics,
    lanes,
    numbers_of,
    outlier_list,
    pad_of_list,
    raw_codes,
    value_rows,
    value_statistics,
)
from moorage.kernels.triton_support import power_of_2

NUM_PROGRAMS = 64
"""More than `block_gather` has: a program has fewer bytes in flight, and computes between reads."""
TILE_ELEMENTS = 8192


@triton.jit(do_not_specialize=["num_pieces"])
def _expand(
    stored,
    key_levels,
    value_levels,
    key_scale,
    key_zero,
    pages,
    out,
    slots,
    num_pieces,
    LAYOUT: tl.constexpr,
    TILE: tl.constexpr,
    PAD_DIM: tl.constexpr,
    PAD_LIST: tl.constexpr,
):
    HEADS: tl.constexpr = LAYOUT.num_kv_heads
    DIM: tl.constexpr = LAYOUT.head_dim
    SIZE: tl.constexpr = LAYOUT.block_size * DIM
    channel, is_one = lanes(0, DIM, PAD_DIM, LAYOUT)
    for i in range(tl.program_id(0), num_pieces * 2 * HEADS, tl.num_programs(0)):
        piece, part, head = i // (2 * HEADS), i // HEADS % 2, i % HEADS
        page = stored + tl.load(pages + piece).to(tl.int64) * LAYOUT.block_bytes
        target = out + (tl.load(slots + piece).to(tl.int64) * 2 * HEADS + part * HEADS + head) * SIZE
        for first_row in range(0, LAYOUT.block_size, TILE):
            rows = first_row + tl.arange(0, TILE)
            seen = rows < LAYOUT.block_size
            at = target + rows[:, None] * DIM + channel[None, :]
            mask = seen[:, None] & is_one[None, :]
            if part == 0:
                key_codes = raw_codes(key_rows(page, head, rows, LAYOUT), seen, 0, DIM, PAD_DIM, LAYOUT)
                scale, zero = key_statistics(page, head, key_scale, key_zero, channel, is_one, LAYOUT)
                keys = numbers_of(
                    key_codes, key_levels, scale[None, :], zero[None, :], 0, DIM, PAD_DIM, LAYOUT
                )
                tl.store(at, keys.to(tl.float16), mask=mask)
            else:
                value_codes = raw_codes(value_rows(page, head, rows, LAYOUT), seen, 0, DIM, PAD_DIM, LAYOUT)
                of_row, zero_of_row = value_statistics(page, head, rows, seen, LAYOUT)
                values = numbers_of(
                    value_codes, value_levels, of_row[:, None], zero_of_row[:, None], 0, DIM, PAD_DIM, LAYOUT
                )
                tl.store(at, values.to(tl.float16), mask=mask)
        if LAYOUT.capacity > 0:
            # All threads have written what codes say before one of them replaces an element.
            tl.debug_barrier()
            places, exact, num_keys, num_values = outlier_list(page, head, LAYOUT)
            n = tl.arange(0, PAD_LIST)
            listed = n < num_keys
            if part == 1:
                listed = (n >= num_keys) & (n < num_keys + num_values)
            place = tl.load(places + n, mask=listed, other=0).to(tl.int32)
            tl.store(target + place, tl.load(exact + n, mask=listed), mask=listed)


def expand_blocks(
    layout: PackedLayout,
    tables: DeviceTables,
    stored: torch.Tensor,
    pages: torch.Tensor,
    out: torch.Tensor,
    slots: torch.Tensor,
) -> None:
    """Expands stored[pages[i]] into out[slots[i]], number for number what `decode_blocks` gives.

    stored uint8 [P, block_bytes] begins at a multiple of 64 bytes, in mapped pinned memory of the host or on the
    device; out fp16 [S, 2, Hkv, B, D], tables and pages, slots int32 [n] lie on the device. Slots differ. All
    contiguous.
    """
    assert stored.is_contiguous()
    assert stored.dtype == torch.uint8
    assert stored.shape[1:] == (layout.block_bytes,)
    assert out.is_contiguous()
    assert out.dtype == torch.float16
    assert out.shape[1:] == (2, layout.num_kv_heads, layout.block_size, layout.head_dim)
    if not len(pages):
        return
    padded_dim = power_of_2(layout.head_dim, 16)
    _expand[(NUM_PROGRAMS,)](
        stored,
        *tables,
        pages,
        out,
        slots,
        len(pages),
        layout,
        min(TILE_ELEMENTS // padded_dim, power_of_2(layout.block_size)),
        padded_dim,
        pad_of_list(layout),
        num_warps=8,
        # A product and a sum are rounded each, as on the CPU.
        enable_fp_fusion=False,
    )
