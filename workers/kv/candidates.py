"""The candidates of a selection: the blocks among which it takes the best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from moorage.workers.kv.messages import Int32, SelectRequest


@dataclass(frozen=True, slots=True)
class Preselection:
    """A preselection: some of the blocks before `limit`, and every block from there on."""

    blocks: Int32
    """Ascending."""
    limit: int

    def until(self, end: int) -> Int32:
        """The candidates before `end`."""
        if end <= self.limit:
            return self.blocks
        return np.concatenate((self.blocks, np.arange(self.limit, end, dtype=np.int32)))


class Asked(NamedTuple):
    """A request with what the store knows of its session."""

    request: SelectRequest
    pages: Int32
    num_sealed: int
    preselection: Preselection | None


class Candidates(NamedTuple):
    """The blocks that one request may select."""

    ids: Int32 | None
    """[n], ascending; None stands for the n blocks from `request.first` on."""
    pages: Int32
    """[n]"""
    limits: Int32
    """[R]: row r may select among the first `limits[r]` of them."""

    def named(self, places: Int32) -> Int32:
        """The block ids at `places`, of which -1 stay; for `ids` that are given."""
        if self.ids is None or not len(self.ids):
            return places
        return np.where(places >= 0, self.ids[places], np.int32(-1))


def candidates_of(asked: Asked) -> Candidates:
    """The candidates that the session's sealed blocks and its preselection leave of a request's."""
    request, pages, num_sealed, preselection = asked
    first = request.first
    if len(request.limits) == 1 and preselection is None:
        end = max(min(int(request.limits[0]), num_sealed), first)
        return Candidates(None, pages[first:end], np.array([end - first], np.int32))
    limits = np.maximum(np.minimum(request.limits, np.int32(num_sealed)), np.int32(first))
    end = int(limits.max()) if len(limits) else first
    if preselection is None:
        return Candidates(None, pages[first:end], limits - np.int32(first))
    among = preselection.until(end)
    ids = among[np.searchsorted(among, first) : np.searchsorted(among, end)]
    return Candidates(ids, pages[ids], np.searchsorted(ids, limits).astype(np.int32))
