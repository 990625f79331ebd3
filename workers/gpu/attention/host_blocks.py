"""Attention of a generated token by the host, to blocks where they lie in the stores' memory."""

from __future__ import annotations

import torch

from moorage.kernels.block_attention.resident import attend_resident
from moorage.workers.gpu.attention.stored_blocks import Partial, TokenQuery
from moorage.workers.gpu.positions.attention_blocks import AttentionBlocks
from moorage.workers.kv.host_memory import HostBlocks
from moorage.workers.spec import KvLayout


def attend_on_host(
    query: TokenQuery, plain: torch.Tensor, resident: HostBlocks, layout: KvLayout, blocks: AttentionBlocks
) -> Partial:
    """Attention of `query`, whose heads are `plain` [Hq, D] in fp32 on the host; so is the result.

    `blocks` have their angles.
    """
    rotary = query.rotary
    out, lse = attend_resident(
        plain.numpy(),
        resident.memories,
        resident.tables,
        resident.layer_sizes,
        query.layer,
        resident.stripe_blocks,
        (layout.num_kv_heads, layout.block_size, layout.head_dim),
        blocks.blocks,
        (blocks.begin, blocks.end),
        (blocks.angle_cos, blocks.angle_sin, blocks.rotate_keys, rotary.offset_cos, rotary.offset_sin),
        query.scale,
        query.kv_head,
        query.softcap,
    )
    return Partial(torch.from_numpy(out), torch.from_numpy(lse))
