"""What a format of stored blocks must do. Its module loads kernels late, since sizes are needed without them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from moorage.workers.kv.formats.quantizer import MOST_LEVELS, Quantizer
from moorage.workers.kv.messages import Int32, Storage
from moorage.workers.spec import BlockShape

if TYPE_CHECKING:
    from moorage.kernels.packed_blocks.layout import PackedLayout
    from moorage.kernels.packed_blocks.tables import LayerTables

Blocks = NDArray[Any]
"""[P, ...]: one layer's blocks, as `BlockFormat.view` gives them."""
Bytes = NDArray[np.uint8]
"""[P, block_bytes]: one layer's packed blocks."""
NUM_HEAD_NUMBERS = 1 + 2 * MOST_LEVELS
"""Numbers of a layer's quantizer in memory that no head has for itself: bits, levels of keys, levels of values."""


class BlockFormat(ABC):
    """Keys and values of a block in memory: how many bytes they take, and what a block is decoded to."""

    element: ClassVar[str]
    """float16 or float32, as numpy and torch name it: the type of decoded blocks, of anchors and of device slots."""
    is_native: ClassVar[bool]
    """Whether blocks lie in memory as they are decoded, so that kernels and copies may read them there."""
    limit: ClassVar[str]
    """What is wrong with an element that can't be stored, and what to do about it."""

    @property
    def storage(self) -> np.dtype[Any]:
        """numpy's type of decoded elements: float32, or the bits of float16."""
        return np.dtype(np.uint16 if self.element == "float16" else np.float32)

    @abstractmethod
    def block_bytes(self, shape: BlockShape, calibrated: bool = False) -> int:
        """Bytes of a block in memory, a multiple of 4; `calibrated` says that a quantizer has statistics of keys."""

    def quantizer_bytes(self, num_layers: int, shape: BlockShape) -> int:
        """Bytes of a quantizer for `num_layers` layers; 0 where the format takes none."""
        del num_layers, shape
        return 0

    def device_table_bytes(self, num_layers: int, shape: BlockShape, calibrated: bool = False) -> int:
        """Bytes of what a GPU expands the blocks of `num_layers` layers by; 0 where blocks travel decoded."""
        del num_layers, shape, calibrated
        return 0


class RowFormat(BlockFormat):
    """A format whose rows are stored one by one, in any order."""

    @abstractmethod
    def view(self, memory: Bytes, shape: BlockShape) -> NDArray[Any]:
        """What `memory` [..., block_bytes] holds, [..., 2, Hkv, B, D] of type `storage`."""

    @abstractmethod
    def encode(self, blocks: Blocks, pages: Int32, start: int, keys: Storage, values: Storage) -> bool:
        """Writes rows [T, Hkv, D], float32 or of type `storage`, from token `start` of the blocks on `pages` on.

        False where an element can't be stored; then the rows hold anything.
        """

    @abstractmethod
    def clear(self, blocks: Blocks, page: int, first_row: int) -> None:
        """Makes the rows of a page from `first_row` on decode to 0."""

    @abstractmethod
    def decode(self, blocks: Blocks, pages: Int32, out: Storage, slots: Int32) -> None:
        """Reads the blocks on `pages` into `out[slots]`, [num_slots, 2, Hkv, B, D] of type `storage`."""


class PackedCodec(Protocol):
    """Packs and unpacks whole blocks of one shape, by the quantizers of layers where the format has them."""

    def layout_of(self, layer: int) -> PackedLayout:
        """Where the parts of a block of a layer lie."""

    def tables_of(self, layer: int) -> LayerTables:
        """What is needed to read the blocks of a layer, beside them."""

    def encode(self, layer: int, blocks: NDArray[np.uint16], stored: Bytes, pages: Int32) -> bool:
        """Packs `blocks` [n, 2, Hkv, B, D], bits of float16, into `stored[pages]`; all tokens of a block are given.

        False where an element is not finite; then the pages hold anything.
        """

    def decode(self, layer: int, stored: Bytes, pages: Int32, out: NDArray[np.uint16], slots: Int32) -> None:
        """Unpacks the blocks on `pages` into `out[slots]`, [num_slots, 2, Hkv, B, D], as bits of float16."""


class PackedFormat(BlockFormat):
    """A format of few bits, which holds whole blocks alone. `block_bytes` is a multiple of 64.

    A block is packed when it is full. Until then its rows lie in fp16 in pages of their own: see `KvLayout`.
    """

    element = "float16"
    is_native = False
    limit = "the model computes a key or value that FP16 does not hold as a finite number; set model.dtype to float32"

    @property
    @abstractmethod
    def bits(self) -> int:
        """Bits of the code of an element."""

    @property
    @abstractmethod
    def takes_quantizer(self) -> bool:
        """Whether `codec` can use a quantizer."""

    def quantizer_bytes(self, num_layers: int, shape: BlockShape) -> int:
        """See BlockFormat."""
        per_layer = NUM_HEAD_NUMBERS + (4 + shape.head_dim) * shape.num_kv_heads * shape.head_dim
        return 4 * num_layers * per_layer if self.takes_quantizer else 0

    @abstractmethod
    def codec(self, shape: BlockShape, quantizer: Quantizer | None = None) -> PackedCodec:
        """What packs and unpacks blocks of `shape`; loads kernels."""
