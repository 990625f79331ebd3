"""Blocks that lie in memory as kernels read them: [K|V][kv_head][token][dim]."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moorage.workers.kv.formats.base import Blocks, RowFormat
from moorage.workers.kv.messages import Int32, Storage
from moorage.workers.spec import BlockShape


class NativeFormat(RowFormat):
    """Elements one by one, all tokens of a head together."""

    is_native = True

    def block_bytes(self, shape: BlockShape, calibrated: bool = False) -> int:
        """See BlockFormat."""
        del calibrated
        return shape.num_elements * self.storage.itemsize

    def view(self, memory: NDArray[np.uint8], shape: BlockShape) -> NDArray[Any]:
        """See RowFormat."""
        return memory.view(self.storage).reshape(*memory.shape[:-1], 2, *shape)

    def encode(self, blocks: Blocks, pages: Int32, start: int, keys: Storage, values: Storage) -> bool:
        """See RowFormat."""
        from moorage.kernels.block_write import write_rows

        return write_rows(blocks, pages, start, keys, values)

    def clear(self, blocks: Blocks, page: int, first_row: int) -> None:
        """See RowFormat."""
        blocks[page, :, :, first_row:] = 0

    def decode(self, blocks: Blocks, pages: Int32, out: Storage, slots: Int32) -> None:
        """See RowFormat."""
        from moorage.kernels.block_gather import gather_blocks

        gather_blocks(blocks, pages, out, slots)
