"""One launch each: a generated token's query in every variant; its K and V, un-rotated, into their slot."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from moorage.kernels.triton_support import power_of_2


@triton.jit
def _turn(
    queries,
    row_stride,
    cos,
    sin,
    out,
    NUM_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    HALF: tl.constexpr,
    VARIANTS: tl.constexpr,
    PAD_DIM: tl.constexpr,
):
    row, head = tl.program_id(0), tl.program_id(1)
    channel = tl.arange(0, PAD_DIM)
    inside = channel < DIM
    source = queries + row * row_stride + head * DIM
    values = tl.load(source + channel, mask=inside, other=0.0).to(tl.float32)
    turned = channel < 2 * HALF
    first_half = channel < HALF
    partner = tl.where(first_half, channel + HALF, channel - HALF)
    others = tl.load(source + partner, mask=turned, other=0.0).to(tl.float32)
    others = tl.where(first_half, -others, others)
    angle = tl.where(first_half, channel, channel - HALF)
    for variant in tl.static_range(VARIANTS):
        at = (row * VARIANTS + variant) * HALF + angle
        c = tl.load(cos + at, mask=turned, other=1.0)
        s = tl.load(sin + at, mask=turned, other=0.0)
        target = out + ((row * VARIANTS + variant) * NUM_HEADS + head) * DIM
        tl.store(target + channel, values * c + others * s, mask=inside)


def turn_queries(queries: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """f32 [R, V, Hq, D]: queries [R, Hq, D] of any type, rotated by cos, sin f32 [R, V, rd / 2]."""
    num_rows, num_heads, dim = queries.shape
    variants, half = cos.shape[1:]
    out = torch.empty((num_rows, variants, num_heads, dim), dtype=torch.float32, device=queries.device)
    if out.numel():
        assert queries.stride()[1:] == (dim, 1)
        _turn[(num_rows, num_heads)](
            queries,
            queries.stride(0),
            cos,
            sin,
            out,
            num_heads,
            dim,
            half,
            variants,
            power_of_2(dim, 16),
            num_warps=1,
        )
    return out


@triton.jit(do_not_specialize=["slot", "row"])
def _store(
    key,
    value,
    slots,
    slot_stride,
    part_stride,
    head_stride,
    slot,
    row,
    DIM: tl.constexpr,
    PAD_DIM: tl.constexpr,
):
    head = tl.program_id(0)
    channel = tl.arange(0, PAD_DIM)
    inside = channel < DIM
    place = slots + tl.cast(slot, tl.int64) * slot_stride + head * head_stride + row * DIM + channel
    tl.store(place, tl.load(key + head * DIM + channel, mask=inside), mask=inside)
    tl.store(place + part_stride, tl.load(value + head * DIM + channel, mask=inside), mask=inside)


def store_row(key: torch.Tensor, value: torch.Tensor, slots: torch.Tensor, slot: int, row: int) -> None:
    """Writes key, value [Hkv, D], rounded to the type of `slots` [S, 2, Hkv, B, D], to row `row` of one slot."""
    num_heads, dim = key.shape
    assert key.stride() == value.stride() == (dim, 1)
    assert slots.stride()[3:] == (dim, 1)
    _store[(num_heads,)](
        key, value, slots, *slots.stride()[:3], slot, row, dim, power_of_2(dim, 16), num_warps=1
    )
