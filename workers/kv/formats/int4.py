"""4 bits, equally spaced: keys by channel of a block, values by token and KV head."""

from __future__ import annotations

from moorage.kernels.packed_blocks.layout import PackedFamily
from moorage.workers.kv.formats.packed import PackedBlocks


class Int4(PackedBlocks):
    """See the module."""

    bits = 4
    family = PackedFamily(4, uniform=True)


FORMAT = Int4()
