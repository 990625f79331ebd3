"""One launch: a generated token's query in every variant, and its K and V, un-rotated, into their slot."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from moorage.kernels.triton_support import power_of_2


@triton.jit(do_not_specialize=["slot", "row"])
def _inputs(
    query,
    key,
    value,
    cos,
    sin,
    plain,
    turned,
    stored,
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
    head = tl.program_id(0)
    channel = tl.arange(0, PAD_DIM)
    inside = channel < DIM
    if head < NUM_HEADS:
        source = query + head * DIM
        values = tl.load(source + channel, mask=inside, other=0.0).to(tl.float32)
        if NUM_KV_HEADS:
            tl.store(plain + head * DIM + channel, values, mask=inside)
        rotates = channel < 2 * HALF
        first_half = channel < HALF
        partner = tl.where(first_half, channel + HALF, channel - HALF)
        others = tl.load(source + partner, mask=rotates, other=0.0).to(tl.float32)
        others = tl.where(first_half, -others, others)
        angle = tl.where(first_half, channel, channel - HALF)
        for variant in tl.static_range(VARIANTS):
            c = tl.load(cos + variant * HALF + angle, mask=rotates, other=1.0)
            s = tl.load(sin + variant * HALF + angle, mask=rotates, other=0.0)
            target = turned + (variant * NUM_HEADS + head) * DIM
            tl.store(target + channel, values * c + others * s, mask=inside)
    else:
        kv_head = head - NUM_HEADS
        place = slots + tl.cast(slot, tl.int64) * slot_stride + kv_head * head_stride + row * DIM + channel
        in_slot = inside & (slot >= 0)
        at = kv_head * DIM + channel
        # In fp32 on the way, since bf16 has no conversion of its own to fp16.
        k = tl.load(key + at, mask=inside, other=0.0).to(tl.float32)
        v = tl.load(value + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(stored + at, k.to(stored.dtype.element_ty), mask=inside)
        tl.store(stored + NUM_KV_HEADS * DIM + at, v.to(stored.dtype.element_ty), mask=inside)
        tl.store(place, k.to(slots.dtype.element_ty), mask=in_slot)
        tl.store(place + part_stride, v.to(slots.dtype.element_ty), mask=in_slot)


def decode_inputs(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    slots: torch.Tensor,
    slot: int,
    row: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(query f32 [Hq, D], rotated queries f32 [V, Hq, D], K and V as stored [2, Hkv, D]) of one token.

    query [Hq, D] and key, value [Hkv, D] of any type; cos, sin f32 [V, rd / 2]. Key and value also go, rounded to the
    type of `slots` [S, 2, Hkv, B, D], to row `row` of one slot, or nowhere if `slot` is -1.
    """
    num_kv_heads, dim = key.shape
    assert key.stride() == value.stride() == (dim, 1)
    assert slots.stride()[3:] == (dim, 1)
    plain = torch.empty(query.shape, dtype=torch.float32, device=query.device)
    stored = torch.empty((2, num_kv_heads, dim), dtype=slots.dtype, device=query.device)
    turned = _launch(
        query, cos, sin, plain, (key, value, stored, slots, *slots.stride()[:3], slot, row), num_kv_heads
    )
    return plain, turned, stored


def turn_query(query: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """The rotated queries alone."""
    return _launch(query, cos, sin, query, (query, query, query, query, 0, 0, 0, -1, 0), 0)


def _launch(
    query: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    plain: torch.Tensor,
    rows: tuple[torch.Tensor | int, ...],
    num_kv_heads: int,
) -> torch.Tensor:
    num_heads, dim = query.shape
    variants, half = cos.shape
    assert query.stride() == (dim, 1)
    turned = torch.empty((variants, num_heads, dim), dtype=torch.float32, device=query.device)
    key, value, *stored = rows
    _inputs[(num_heads + num_kv_heads,)](
        query,
        key,
        value,
        cos,
        sin,
        plain,
        turned,
        *stored,
        num_heads,
        num_kv_heads,
        dim,
        half,
        variants,
        power_of_2(dim, 16),
        num_warps=1,
    )
    return turned
