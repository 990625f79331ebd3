"""Blocks, or single KV heads of blocks, read by the GPU itself from mapped pinned host memory (zero copy).

Each copy call costs the host some microseconds, which a piece of 64 KiB takes to travel. One launch reads any number
of pieces, as RetroInfer and ShadowKV do. A few programs saturate the link; more would only take processors from
the attention that runs beside.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

NUM_PROGRAMS = 32
CHUNK_WORDS = 4096
"""4-byte words that a program has in flight."""


@triton.jit(do_not_specialize=["num_pieces"])
def _gather(
    stored,
    page_stride,
    part_stride,
    head_stride,
    pages,
    heads,
    out,
    slots,
    num_pieces,
    RUN: tl.constexpr,
    NUM_RUNS: tl.constexpr,
    ONE_HEAD: tl.constexpr,
    CHUNK: tl.constexpr,
):
    CHUNKS: tl.constexpr = (RUN + CHUNK - 1) // CHUNK
    word = tl.arange(0, CHUNK)
    for i in range(tl.program_id(0), num_pieces * NUM_RUNS * CHUNKS, tl.num_programs(0)):
        piece, run, chunk = i // (NUM_RUNS * CHUNKS), (i // CHUNKS) % NUM_RUNS, i % CHUNKS
        offset = run * part_stride + chunk * CHUNK
        if ONE_HEAD:
            offset += tl.load(heads + piece).to(tl.int64) * head_stride
        inside = chunk * CHUNK + word < RUN
        source = stored + tl.load(pages + piece).to(tl.int64) * page_stride + offset
        target = out + tl.load(slots + piece).to(tl.int64) * page_stride + offset
        tl.store(target + word, tl.load(source + word, mask=inside), mask=inside)


def gather_pieces(
    kv_layer: torch.Tensor,
    pages: torch.Tensor,
    out: torch.Tensor,
    slots: torch.Tensor,
    heads: torch.Tensor | None = None,
) -> None:
    """Copies kv_layer[pages[i]] into out[slots[i]], of piece i all KV heads or, with `heads`, the one that it names.

    kv_layer [P, 2, Hkv, B, D] in mapped pinned memory of the host; out [S, 2, Hkv, B, D] of the same type and pages,
    slots, heads int32 [n] on the device. Slots, or pairs of slot and head, must differ. All contiguous; B * D even.
    """
    assert kv_layer.is_contiguous()
    assert out.is_contiguous()
    assert kv_layer.dtype == out.dtype
    assert kv_layer.shape[1:] == out.shape[1:]
    if not len(pages):
        return
    source, target = kv_layer.view(torch.int32), out.view(torch.int32)
    page_stride, part_stride, head_stride = source.stride()[:3]
    run, num_runs = (page_stride, 1) if heads is None else (head_stride, 2)
    _gather[(NUM_PROGRAMS,)](
        source,
        page_stride,
        part_stride,
        head_stride,
        pages,
        pages if heads is None else heads,
        target,
        slots,
        len(pages),
        run,
        num_runs,
        heads is not None,
        CHUNK_WORDS,
        num_warps=8,
    )
