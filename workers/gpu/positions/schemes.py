"""Position schemes as integers: which keys a query sees, through which variant of itself, and at what positions.

A scheme gives every key one position, or none (it is then used un-rotated), and every query up to three
positions, its variants. For a run of queries it lists *parts*: key ranges with the variant that meets them.

    scheme    key position   variants of the query at position i
    rope      j              NEAR i
    clamped   j, or 0        NEAR i within the window; FAR window - 1 beyond it, keys un-rotated (InfLLM)
    rolling   j              NEAR i within the window; FAR min(i, sinks + window - 1) (StreamingLLM)
    dca       j mod s        NEAR i mod s; NEXT min(s + i mod s, c - 1); FAR c - 1 (Dual Chunk Attention)
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from moorage.workers.spec import MemorySpec, Positions

Int64 = NDArray[np.int64]

FOREVER = 1 << 62
"""Upper end of a range that has none."""


class Variant(IntEnum):
    """Which of its positions a query takes."""

    NEAR = 0
    """The true position, or under dca the position within its chunk (intra)."""
    NEXT = 1
    """Towards the chunk before (dca's successive)."""
    FAR = 2
    """Towards everything beyond (clamped, rolling, dca's inter)."""


@dataclass(frozen=True, slots=True)
class Part:
    """Keys [low, high) at distances [least, most), met by one variant of the query."""

    variant: Variant
    low: int
    high: int
    least: int = 0
    most: int = FOREVER

    def clipped(self, first: int, end: int) -> tuple[int, int]:
        """The range of keys that some query of [first, end) can see."""
        return max(self.low, first - self.most + 1), min(self.high, end - self.least)


class Scheme(Protocol):
    """Integer geometry of one scheme."""

    @property
    def period(self) -> int:
        """Tokens after which the positions of keys begin anew; 0 where they never do."""

    def query_positions(self, variant: Variant, positions: Int64) -> Int64:
        """Where the queries at `positions` stand as `variant`."""

    def key_positions(self, positions: Int64) -> Int64:
        """Where the keys at `positions` stand, when rotated."""

    def rotates_keys(self, variant: Variant) -> bool:
        """Whether `variant` meets rotated keys; else they are used as stored."""

    def groups(self, first: int, end: int) -> list[tuple[int, int]]:
        """Queries [first, end) in runs that share their parts."""

    def parts(self, first: int, end: int) -> tuple[Part, ...]:
        """All keys that one run of queries sees, each key of a query in one part."""


@dataclass(frozen=True, slots=True)
class Windowed:
    """A window at true distances; beyond it, keys before `num_kept` at a distance of at most `farthest`."""

    window: int
    num_kept: int
    farthest: int
    rotates_far: bool

    period = 0

    def query_positions(self, variant: Variant, positions: Int64) -> Int64:
        """See Scheme."""
        return positions if variant is Variant.NEAR else np.minimum(positions, self.farthest)

    def key_positions(self, positions: Int64) -> Int64:
        """See Scheme."""
        return positions

    def rotates_keys(self, variant: Variant) -> bool:
        """See Scheme."""
        return variant is Variant.NEAR or self.rotates_far

    def groups(self, first: int, end: int) -> list[tuple[int, int]]:
        """See Scheme."""
        return [(first, end)]

    def parts(self, first: int, end: int) -> tuple[Part, ...]:
        """See Scheme."""
        del first
        near = Part(Variant.NEAR, 0, end, 0, self.window)
        if end <= self.window or not self.num_kept:
            return (near,)
        return Part(Variant.FAR, 0, min(self.num_kept, end), self.window), near


@dataclass(frozen=True, slots=True)
class DualChunk:
    """Dual Chunk Attention (arXiv 2402.17463) with chunks of `chunk` tokens under a trained length of `length`."""

    length: int
    chunk: int

    @property
    def period(self) -> int:
        """See Scheme."""
        return self.chunk

    def query_positions(self, variant: Variant, positions: Int64) -> Int64:
        """See Scheme."""
        within = positions % self.chunk
        if variant is Variant.NEAR:
            return within
        if variant is Variant.NEXT:
            return np.minimum(self.chunk + within, self.length - 1)
        return np.full_like(within, self.length - 1)

    def key_positions(self, positions: Int64) -> Int64:
        """See Scheme."""
        return positions % self.chunk

    def rotates_keys(self, variant: Variant) -> bool:
        """See Scheme."""
        del variant
        return True

    def groups(self, first: int, end: int) -> list[tuple[int, int]]:
        """See Scheme; a run never crosses a chunk's end."""
        cuts = range((first // self.chunk + 1) * self.chunk, end, self.chunk)
        return list(pairwise([first, *cuts, end]))

    def parts(self, first: int, end: int) -> tuple[Part, ...]:
        """See Scheme."""
        own = first // self.chunk * self.chunk
        before = max(0, own - self.chunk)
        parts = Part(Variant.FAR, 0, before), Part(Variant.NEXT, before, own), Part(Variant.NEAR, own, end)
        return tuple(part for part in parts if part.low < part.high)


def scheme_of(memory: MemorySpec, block_size: int) -> Scheme:
    """The scheme of one session. A topk of 0 attends nothing but the sinks and exactly the window."""
    window = memory.retention.window
    num_sinks = -(-memory.retention.sinks // block_size) * block_size
    num_kept = num_sinks if memory.selection.topk == 0 else FOREVER
    match memory.positions.scheme:
        case Positions.ROPE:
            return Windowed(window if memory.selection.topk == 0 else FOREVER, num_kept, FOREVER, True)
        case Positions.CLAMPED:
            return Windowed(window, num_kept, window - 1, False)
        case Positions.ROLLING:
            return Windowed(window, num_sinks, num_sinks + window - 1, True)
        case Positions.DCA:
            sizes = memory.positions.dual_chunk
            return DualChunk(sizes.length, sizes.chunk)
