"""Which shard holds what: consecutive units in stripes, dealt to the shards in turn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from moorage.workers.kv.messages import Int32


@dataclass(frozen=True, slots=True)
class Stripes:
    """Deals stripes of `length` units (blocks or tokens) to `num_shards` shards in turn.

    A shard keeps its units in order and without holes, so a range of the whole is a range in each shard.
    """

    num_shards: int
    length: int

    def count(self, total: int, shard: int) -> int:
        """How many of the first `total` units lie in `shard`."""
        rounds, rest = divmod(total, self.num_shards * self.length)
        return rounds * self.length + min(max(rest - shard * self.length, 0), self.length)

    def counts(self, totals: Int32, shard: int) -> Int32:
        """`count` of each of `totals`."""
        if len(totals) == 1:  # a decode step's; numpy would take seven times as long
            return np.array([self.count(int(totals[0]), shard)], np.int32)
        rounds, rest = np.divmod(totals, self.num_shards * self.length)
        counts = rounds * self.length + np.clip(rest - shard * self.length, 0, self.length)
        return np.asarray(counts, np.int32)

    def place(self, unit: int) -> tuple[int, int]:
        """(shard, unit within the shard) of one unit."""
        stripe, offset = divmod(unit, self.length)
        rounds, shard = divmod(stripe, self.num_shards)
        return shard, rounds * self.length + offset

    def split(self, units: Int32) -> tuple[Int32, Int32]:
        """(shard, unit within the shard) of each of `units`."""
        stripe, offset = np.divmod(units, self.length)
        rounds, shard = np.divmod(stripe, self.num_shards)
        return np.asarray(shard, np.int32), np.asarray(rounds * self.length + offset, np.int32)

    def joined(self, shard: int, units: Int32) -> Int32:
        """Units of the whole, given `units` within `shard`; the inverse of `split`."""
        rounds, offset = np.divmod(units, self.length)
        return np.asarray((rounds * self.num_shards + shard) * self.length + offset, np.int32)

    def runs(self, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """(shard, first unit within it, begin, end) of each consecutive piece of [start, end)."""
        while start < end:
            stripe, offset = divmod(start, self.length)
            rounds, shard = divmod(stripe, self.num_shards)
            stop = min(end, start - offset + self.length)
            yield shard, rounds * self.length + offset, start, stop
            start = stop

    def held(self, counts: list[int]) -> int:
        """Units of the whole that are present without a hole when shard s holds its first `counts[s]`."""
        missing = [
            (count // self.length * self.num_shards + shard) * self.length + count % self.length
            for shard, count in enumerate(counts)
        ]
        return min(missing)
