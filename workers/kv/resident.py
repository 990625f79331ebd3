"""Blocks that lie in memory which this process maps, so that it can read them without asking anyone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moorage.workers.kv.arena import Arena
from moorage.workers.kv.messages import Int32, Storage


@dataclass(frozen=True, slots=True)
class Resident:
    """One session's pages in the arenas of all shards; stripes of blocks are dealt to these in turn."""

    memories: tuple[Storage, ...]
    """Every arena's keys and values, flat."""
    tables: tuple[Int32, ...]
    """Pages of the session's blocks in each arena."""
    layer_sizes: NDArray[np.int64]
    """Elements of one layer in each arena."""
    stripe_blocks: int

    @classmethod
    def of(cls, arenas: list[Arena], tables: list[Int32], stripe_blocks: int) -> Resident:
        """The pages `tables` of `arenas`."""
        sizes = np.array([arena.kv[0].size for arena in arenas], np.int64)
        return cls(tuple(arena.kv.reshape(-1) for arena in arenas), tuple(tables), sizes, stripe_blocks)
