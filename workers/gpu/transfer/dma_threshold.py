"""From which size on a piece reaches the device sooner by DMA than by the kernel that reads host memory itself."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch

from moorage.workers.gpu.engine.timing import least_seconds

PIECE_BYTES = tuple(1 << power for power in range(14, 21))
"""Sizes that are tried: 16 KiB to 1 MiB."""
SCRATCH_BYTES = 8 * 2**20
"""Copied in each trial; a link of 50 GB/s takes 0.2 ms for it."""


def dma_threshold(gather_s: float, dma_s: Mapping[int, float]) -> int:
    """Bytes of the smallest piece from which on DMA is at least as fast; it leaves the device's processors alone.

    gather_s is what the kernel takes, dma_s by piece size what copy calls take, for the same bytes in all. Twice the
    largest size if the kernel wins there as well.
    """
    threshold = 2 * max(dma_s)
    for size in sorted(dma_s, reverse=True):
        if dma_s[size] > gather_s:
            break
        threshold = size
    return threshold


def measure_threshold(blocks: torch.Tensor, device: torch.device) -> int:
    """`dma_threshold` of this machine, in some 20 ms; `blocks` [n, 2, Hkv, B, D] is pinned and holds anything."""
    from moorage.kernels.block_gather.triton import gather_pieces

    block_bytes = blocks[0].numel() * blocks.element_size()
    source = blocks[: max(1, SCRATCH_BYTES // block_bytes)]
    target = torch.empty_like(source, device=device)
    places = torch.arange(len(source), dtype=torch.int32, device=device)
    # The kernel reads runs of 16 KiB whatever the pieces are, so one time stands for all sizes.
    gather_s = least_seconds(lambda: gather_pieces(source, places, target, places), device)
    here, there = (tensor.flatten().view(torch.uint8) for tensor in (source, target))

    def copy(size: int) -> None:
        for piece, place in zip(*(torch.split(side, size) for side in (here, there)), strict=True):
            place.copy_(piece, non_blocking=True)

    return dma_threshold(gather_s, {size: least_seconds(partial(copy, size), device) for size in PIECE_BYTES})
