"""How much each part of a prompt was attended for an answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class BlockShares:
    """Shares of the exact attention mass on blocks: the mean over sampled steps, layers and heads."""

    block_size: int
    """Tokens of a block; block i begins at token i * block_size of prompt and answer."""
    shares: tuple[float, ...]


class BlockMasses:
    """The sum of what steps report. Later steps report more blocks."""

    def __init__(self) -> None:
        self._sum: NDArray[np.float64] = np.zeros(0)
        self._count = 0

    def add(self, reported: bytes) -> None:
        """Adds the report of one step; nothing for an empty one."""
        if not reported:
            return
        masses = np.frombuffer(reported, "<f4")
        self._sum = np.pad(self._sum, (0, max(0, len(masses) - len(self._sum))))
        self._sum[: len(masses)] += masses
        self._count += 1

    def shares(self, block_size: int) -> BlockShares | None:
        """The mean; None where nothing was reported."""
        return BlockShares(block_size, tuple((self._sum / self._count).tolist())) if self._count else None
