"""Attention of a generated token to blocks where they lie in the stores' memory, by the host."""

from __future__ import annotations

import torch

from moorage.kernels.block_attention.resident import attend_resident
from moorage.workers.gpu.positions.attention_blocks import AttentionBlocks
from moorage.workers.gpu.positions.rotary import RotaryCache
from moorage.workers.kv.resident import Resident
from moorage.workers.spec import KvLayout

Partial = tuple[torch.Tensor, torch.Tensor]
"""(out [Hq, D], lse [Hq]) in fp32."""


def attend_on_host(
    query: torch.Tensor,
    resident: Resident,
    layer: int,
    layout: KvLayout,
    entries: AttentionBlocks,
    rotations: RotaryCache,
    scale: float,
    kv_head: int | None = None,
) -> Partial:
    """Of `query` [Hq, D], in fp32 on the host and un-rotated; `entries` have their angles.

    With `kv_head`, the query's heads are those of this KV head alone. The result lies on the host.
    """
    out, lse = attend_resident(
        query.numpy(),
        resident.memories,
        resident.tables,
        resident.layer_sizes,
        layer,
        resident.stripe_blocks,
        (layout.num_kv_heads, layout.block_size, layout.head_dim),
        entries.blocks,
        (entries.begin, entries.end),
        (
            entries.angle_cos,
            entries.angle_sin,
            entries.rotate_keys,
            rotations.offset_cos,
            rotations.offset_sin,
        ),
        scale,
        kv_head,
    )
    return torch.from_numpy(out), torch.from_numpy(lse)
