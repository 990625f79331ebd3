"""3 bits at the levels of a quantizer, and outliers as fp16 (KVQuant)."""

from __future__ import annotations

from moorage.kernels.packed_blocks.layout import PackedFamily
from moorage.workers.kv.formats.packed import PackedBlocks

FORMAT = PackedBlocks(PackedFamily(3, outliers=True))
