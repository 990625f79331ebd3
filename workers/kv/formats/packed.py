"""Formats of few bits. They differ in the number of bits, in their levels, and in what is kept beside the codes.

`kernels/packed_blocks/layout.py` draws a block. INT8 and INT4 are asymmetric: levels are equally spaced between the
minimum and the maximum of a key channel within its block, and of a token's value vector of one KV head (KIVI, ICML
2024). NF4 has the levels of QLoRA over the same ranges. The NUQ formats are those of KVQuant (NeurIPS 2024): levels
and statistics of key channels come from the layer's quantizer, values share one range over all heads of a token, and
outliers are kept as fp16. A quantizer can give layers different numbers of bits. Without a quantizer, NUQ has the
levels of NormalFloat, at 2 bits those of least error, and the statistics of its keys in each block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from moorage.kernels.packed_blocks.layout import PackedFamily, PackedLayout, packed_layout, table_bytes
from moorage.workers.errors import InvalidConfig
from moorage.workers.kv.formats.base import Bytes, PackedFormat
from moorage.workers.kv.formats.quantizer import (
    Floats,
    LayerQuantizer,
    Quantizer,
    least_error_levels,
    normal_levels,
)
from moorage.workers.kv.messages import Int32
from moorage.workers.spec import BlockShape

if TYPE_CHECKING:
    from moorage.kernels.packed_blocks.tables import LayerTables

_FEW_BITS = 2


class PackedBlocks(PackedFormat):
    """The format of a family."""

    def __init__(self, family: PackedFamily) -> None:
        self.family = family

    @property
    def bits(self) -> int:
        """See PackedFormat."""
        return self.family.bits

    @property
    def takes_quantizer(self) -> bool:
        """See PackedFormat; a quantizer says which numbers are outliers."""
        return self.family.outliers

    def layout(self, shape: BlockShape, calibrated: bool = False) -> PackedLayout:
        """Where the parts of a block lie. Raises InvalidConfig for a block of too many tokens."""
        calibrated = calibrated and self.takes_quantizer
        try:
            return packed_layout(
                self.family, shape.num_kv_heads, shape.block_size, shape.head_dim, calibrated
            )
        except ValueError as error:
            raise InvalidConfig(
                f"long_context.block_size: {shape.block_size}; {error}; set a smaller one"
            ) from None

    def block_bytes(self, shape: BlockShape, calibrated: bool = False) -> int:
        """See BlockFormat."""
        return self.layout(shape, calibrated).block_bytes

    def device_table_bytes(self, num_layers: int, shape: BlockShape, calibrated: bool = False) -> int:
        """See BlockFormat; without a quantizer all layers have the same tables."""
        calibrated = calibrated and self.takes_quantizer
        return (num_layers if calibrated else 1) * table_bytes(self.layout(shape, calibrated))

    def codec(self, shape: BlockShape, quantizer: Quantizer | None = None) -> BlockCodec:
        """See PackedFormat."""
        from moorage.kernels.packed_blocks.tables import layer_tables

        if quantizer is None or not self.takes_quantizer:
            layout, levels = self.layout(shape), self._own_levels()
            return BlockCodec([layout], [layer_tables(layout, levels, levels)])
        formats = [PackedBlocks(self.family._replace(bits=bits)) for bits in quantizer.layer_bits]
        layouts = [each.layout(shape, calibrated=True) for each in formats]
        tables = [_tables_of(layout, each) for layout, each in zip(layouts, quantizer.layers, strict=True)]
        return BlockCodec(layouts, tables)

    def _own_levels(self) -> Floats:
        """Levels without a quantizer. At 2 bits those of NormalFloat, with 0 and both ends, have twice the error."""
        if self.family.uniform:
            return np.arange(2**self.bits, dtype=np.float32)
        return least_error_levels(self.bits) if self.bits <= _FEW_BITS else normal_levels(self.bits)


class BlockCodec:
    """See PackedCodec. Compiled code takes `layout_of` and `tables_of` a layer."""

    def __init__(self, layouts: list[PackedLayout], tables: list[LayerTables]) -> None:
        """One of each for all layers, or one for each layer."""
        self._layouts, self._tables = layouts, tables

    def layout_of(self, layer: int) -> PackedLayout:
        """See PackedCodec."""
        return self._layouts[layer if len(self._layouts) > 1 else 0]

    def tables_of(self, layer: int) -> LayerTables:
        """See PackedCodec."""
        return self._tables[layer if len(self._tables) > 1 else 0]

    def encode(self, layer: int, blocks: NDArray[np.uint16], stored: Bytes, pages: Int32) -> bool:
        """See PackedCodec."""
        from moorage.kernels.packed_blocks.encode import encode_blocks

        return encode_blocks(self.layout_of(layer), self.tables_of(layer), blocks, stored, pages)

    def decode(self, layer: int, stored: Bytes, pages: Int32, out: NDArray[np.uint16], slots: Int32) -> None:
        """See PackedCodec."""
        from moorage.kernels.packed_blocks.decode import decode_blocks

        decode_blocks(self.layout_of(layer), self.tables_of(layer), stored, pages, out, slots)


def _tables_of(layout: PackedLayout, layer: LayerQuantizer) -> LayerTables:
    from moorage.kernels.packed_blocks.tables import KeyStatistics, layer_tables

    keys = KeyStatistics(layer.key_scale, layer.key_zero, layer.key_low, layer.key_high)
    feedback = layer.key_feedback if layer.key_feedback.any() else None
    return layer_tables(layout, layer.key_levels, layer.value_levels, keys, feedback)
