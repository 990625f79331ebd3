"""Bytes: keys by channel of a block, values by token and KV head (KIVI)."""

from __future__ import annotations

from moorage.kernels.packed_blocks.layout import PackedFamily
from moorage.workers.kv.formats.packed import PackedBlocks

FORMAT = PackedBlocks(PackedFamily(8, uniform=True))
