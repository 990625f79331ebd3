"""Scores of block anchors on the GPU: anchors are read once for all queries of a group, and only they.

QUEST's bound, the sum over channels of max(q * high, q * low), is two matrix products: the positive part of q with
the maxima and the negative part with the minima.

Anchors in fp16 are multiplied by the tensor cores with sums in fp32. The query is split into an fp16 value and the
fp16 rest, one product each, so that the result is as exact as a product in fp32. Each query is divided by its largest
channel first: fp16 holds nothing above 65 504.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from moorage.kernels.triton_support import power_of_2

TILE_BLOCKS = 64


@triton.jit
def _product(query, anchors, sums, HALF: tl.constexpr):
    """sums + query @ anchors, both [*, *] tiles; the query is fp32."""
    if HALF:
        near = query.to(tl.float16)
        rest = (query - near.to(tl.float32)).to(tl.float16)
        sums = tl.dot(rest, anchors, tl.dot(near, anchors, sums))
    else:
        sums = tl.dot(query, anchors, sums, input_precision="ieee")
    return sums


@triton.jit(do_not_specialize=["num_blocks"])
def _score(
    anchors,
    page_stride,
    head_stride,
    pages,
    num_blocks,
    queries,
    out,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    VECTORS: tl.constexpr,
    QUEST: tl.constexpr,
    ADD: tl.constexpr,
    HALF: tl.constexpr,
    PAD_GROUP: tl.constexpr,
    PAD_DIM: tl.constexpr,
    TILE: tl.constexpr,
):
    head, row = tl.program_id(1), tl.program_id(2)
    block = tl.program_id(0) * TILE + tl.arange(0, TILE)
    channel = tl.arange(0, PAD_DIM)
    g = tl.arange(0, PAD_GROUP)
    inside = block < num_blocks
    page = tl.load(pages + block, mask=inside, other=0).to(tl.int64)
    first = (row.to(tl.int64) * NUM_KV_HEADS + head) * GROUP
    query = tl.load(
        queries + (first + g)[:, None] * DIM + channel[None, :],
        mask=(g < GROUP)[:, None] & (channel < DIM)[None, :],
        other=0.0,
    )
    if HALF:
        largest = tl.max(tl.abs(query), axis=1)
        largest = tl.where(largest == 0, 1.0, largest)[:, None]
        query = query / largest
    at = anchors + page[:, None] * page_stride + head * head_stride + channel[None, :]
    mask = inside[:, None] & (channel < DIM)[None, :]
    if ADD:
        found = tl.zeros([PAD_GROUP, TILE], tl.float32)
    else:
        found = tl.full([PAD_GROUP, TILE], -float("inf"), tl.float32)
    STEP: tl.constexpr = 2 if QUEST else 1
    for vector in tl.static_range(0, VECTORS, STEP):
        high = tl.trans(tl.load(at + vector * DIM, mask=mask, other=0.0))
        logits = tl.zeros([PAD_GROUP, TILE], tl.float32)
        if QUEST:
            low = tl.trans(tl.load(at + (vector + 1) * DIM, mask=mask, other=0.0))
            logits = _product(tl.maximum(query, 0.0), high, logits, HALF)
            logits = _product(tl.minimum(query, 0.0), low, logits, HALF)
        else:
            logits = _product(query, high, logits, HALF)
        if ADD:
            found += logits
        else:
            found = tl.maximum(found, logits)
    if HALF:
        found = found * largest
    tl.store(
        out + (first + g)[:, None] * num_blocks + block[None, :],
        found,
        mask=(g < GROUP)[:, None] & inside[None, :],
    )


def score_blocks(
    anchors_layer: torch.Tensor, pages: torch.Tensor, queries: torch.Tensor, quest: bool, *, add: bool = False
) -> torch.Tensor:
    """[R, Hq, n] f32: see cpu.py; anchors [P, Hkv, A, D], pages int32 [n], queries f32 [R, Hq, D] on the device."""
    rows, num_heads, dim = queries.shape
    _, num_kv_heads, vectors, _ = anchors_layer.shape
    assert anchors_layer.is_contiguous()
    out = torch.empty((rows, num_heads, len(pages)), dtype=torch.float32, device=queries.device)
    group = num_heads // num_kv_heads
    if out.numel():
        tile = min(TILE_BLOCKS, power_of_2(len(pages), 16))
        _score[(-(-len(pages) // tile), num_kv_heads, rows)](
            anchors_layer,
            *anchors_layer.stride()[:2],
            pages,
            len(pages),
            queries.contiguous(),
            out,
            num_kv_heads,
            group,
            dim,
            vectors,
            quest,
            add,
            anchors_layer.dtype == torch.float16,
            power_of_2(group, 16),
            power_of_2(dim, 16),
            tile,
        )
    return out
