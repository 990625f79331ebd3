"""4 bits at the levels of NF4: keys by channel of a block, values by token and KV head."""

from __future__ import annotations

from moorage.kernels.packed_blocks.layout import PackedFamily
from moorage.workers.kv.formats.packed import PackedBlocks

FORMAT = PackedBlocks(PackedFamily(4))
