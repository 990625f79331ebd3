"""What a format of stored blocks must do. Its module loads kernels late, since sizes are needed without them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from moorage.workers.kv.messages import Int32, Storage
from moorage.workers.spec import BlockShape

Blocks = NDArray[Any]
"""[P, ...]: one layer's blocks, as `BlockFormat.view` gives them."""


class BlockFormat(ABC):
    """Keys and values of a block in memory: how many bytes they take, how rows go in and blocks come out."""

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
    def block_bytes(self, shape: BlockShape) -> int:
        """Bytes of a block in memory, a multiple of 4."""

    @abstractmethod
    def view(self, memory: NDArray[np.uint8], shape: BlockShape) -> NDArray[Any]:
        """What `memory` [..., block_bytes] holds; where `is_native`, [..., 2, Hkv, B, D] of type `storage`."""

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
