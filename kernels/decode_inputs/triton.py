"""Queries of generated tokens rotated into every variant, and their new K and V written into slots, in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from moorage.kernels.triton_support import power_of_2


@triton.jit
def _turn_and_store(
    heads,
    row_stride,
    cos,
    sin,
    queries,
    slots,
    slot_stride,
    part_stride,
    head_stride,
    slot,
    row,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    HALF: tl.constexpr,
    VARIANTS: tl.constexpr,
    PAD_DIM: tl.constexpr,
):
    r, head = tl.program_id(0), tl.program_id(1)
    channel = tl.arange(0, PAD_DIM)
    inside = channel < DIM
    source = heads + r.to(tl.int64) * row_stride + head * DIM
    values = tl.load(source + channel, mask=inside, other=0.0)
    if head >= NUM_HEADS:
        into = tl.load(slot + r).to(tl.int64)
        part, kv_head = (head - NUM_HEADS) // NUM_KV_HEADS, (head - NUM_HEADS) % NUM_KV_HEADS
        place = into * slot_stride + part * part_stride + kv_head * head_stride + tl.load(row + r) * DIM
        tl.store(slots + place + channel, values, mask=inside & (into >= 0))
    else:
        turned = channel < 2 * HALF
        partner = tl.where(channel < HALF, channel + HALF, channel - HALF)
        others = tl.load(source + partner, mask=turned, other=0.0).to(tl.float32)
        angle = tl.where(channel < HALF, channel, channel - HALF)
        for variant in tl.static_range(VARIANTS):
            at = (r * VARIANTS + variant) * HALF + angle
            c = tl.load(cos + at, mask=turned, other=1.0)
            s = tl.load(sin + at, mask=turned, other=0.0)
            s = tl.where(channel < HALF, -s, s)
            target = queries + ((r * VARIANTS + variant).to(tl.int64) * NUM_HEADS + head) * DIM
            tl.store(target + channel, values.to(tl.float32) * c + others * s, mask=inside)


def turn_and_store(
    heads: torch.Tensor,
    num_kv_heads: int,
    cos: torch.Tensor,
    sin: torch.Tensor,
    slots: torch.Tensor,
    slot: torch.Tensor,
    row: torch.Tensor,
) -> torch.Tensor:
    """Queries f32 [R, V, Hq, D]: those of heads [R, Hq + 2 Hkv, D], rotated by cos, sin f32 [R, V, rd / 2].

    The same launch writes keys and values, un-rotated and rounded, to row[r] of slots[slot[r]], which is
    [S, 2, Hkv, B, D] in storage type; a slot of -1 writes nothing. slot, row int32 [R]; all on one device.
    """
    num_rows, all_heads, dim = heads.shape
    num_heads = all_heads - 2 * num_kv_heads
    variants, half = cos.shape[1:]
    queries = torch.empty((num_rows, variants, num_heads, dim), dtype=torch.float32, device=heads.device)
    if not num_rows:
        return queries
    assert heads.stride()[1:] == (dim, 1)
    assert slots.stride()[3:] == (dim, 1)
    _turn_and_store[(num_rows, all_heads)](
        heads,
        heads.stride(0),
        cos,
        sin,
        queries,
        slots,
        *slots.stride()[:3],
        slot,
        row,
        num_heads,
        num_kv_heads,
        dim,
        half,
        variants,
        power_of_2(dim, 16),
        num_warps=1,
    )
    return queries
