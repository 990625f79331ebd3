"""One view of a KV cache that several stores share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike

from moorage.workers.errors import MoorageError
from moorage.workers.kv.link import Link
from moorage.workers.kv.merge import merge_choices
from moorage.workers.kv.messages import (
    Float32,
    Int32,
    Pooling,
    SelectRequest,
    Storage,
    StoreStats,
)
from moorage.workers.kv.stripes import Stripes
from moorage.workers.spec import KvLayout

T = TypeVar("T")

PRESELECT_ROWS = 16
"""Queries of one preselection that are scored at a time; bounds the memory of their logits."""
NEIGHBOUR_SHARE = 0.25
"""Share of a block's preselection mass that each of its neighbours receives."""


class ShardedKv:
    """Global block ids and token positions over several links; the worker's only way to stored KV.

    Block b lies in stripe b // stripe_blocks, and the stripes are dealt to the shards in turn. With one link
    nothing is translated. Selections equal those of one store that held everything.
    """

    def __init__(self, links: Sequence[Link], layout: KvLayout, stripe_blocks: int = 8) -> None:
        if not links or stripe_blocks < 1:
            raise ValueError(f"{len(links)} links and stripes of {stripe_blocks} blocks; at least 1 each")
        self.links = tuple(links)
        self.layout = layout
        self._blocks = Stripes(len(links), stripe_blocks)
        self._tokens = Stripes(len(links), stripe_blocks * layout.block_size)
        self._num_blocks: dict[int, int] = {}

    def open(self, session_id: int, num_blocks: int) -> None:
        """Reserves room in all shards. If StoreFull or InvalidRequest is raised, nothing has changed."""
        for shard, link in enumerate(self.links):
            try:
                link.open(session_id, self._blocks.count(num_blocks, shard))
            except MoorageError:
                for opened in self.links[:shard]:
                    opened.drop(session_id)
                raise
        self._num_blocks[session_id] = num_blocks

    def grow(self, session_id: int, num_blocks: int) -> None:
        """Makes room for `num_blocks` blocks; never shrinks. If StoreFull is raised, nothing has changed."""
        held = self._num_blocks.get(session_id, 0)
        if num_blocks <= held:
            return
        for shard, link in enumerate(self.links):
            try:
                link.resize(session_id, self._blocks.count(num_blocks, shard))
            except MoorageError:
                for grown in range(shard):
                    self.links[grown].resize(session_id, self._blocks.count(held, grown))
                raise
        self._num_blocks[session_id] = num_blocks

    def attach(self, session_id: int, num_blocks: int) -> int:
        """Takes over a session of `num_blocks` blocks that another worker opened.

        Cuts it back to the tokens that all layers of all shards hold without a hole; returns their number.
        """
        num_tokens = self._tokens.held([link.attach(session_id) for link in self.links])
        self._num_blocks[session_id] = num_blocks
        self.truncate(session_id, num_tokens)
        return num_tokens

    def append(self, session_id: int, layer: int, start: int, keys: ArrayLike, values: ArrayLike) -> None:
        """Stores rows [T, Hkv, D] (float32, float16 or bits of fp16) from token `start` on.

        A start before the end replaces what was stored from there on.
        """
        keys, values = np.asarray(keys), np.asarray(values)
        committed: dict[int, tuple[int, int]] = {}
        for shard, local, begin, stop in self._tokens.runs(start, start + len(keys)):
            rows = slice(begin - start, stop - start)
            self.links[shard].write(session_id, layer, local, keys[rows], values[rows])
            first = committed[shard][0] if shard in committed else local
            committed[shard] = (first, local + stop - begin)
        for shard, (first, end) in committed.items():
            self.links[shard].commit(session_id, layer, first, end)

    def truncate(self, session_id: int, num_tokens: int) -> None:
        """Forgets the tokens after the first `num_tokens`."""
        self._each(lambda link, shard: link.truncate(session_id, self._tokens.count(num_tokens, shard)))

    def select(
        self,
        session_id: int,
        layer: int,
        queries: Float32,
        *,
        first: int,
        limits: Int32,
        k: int,
        shared: bool,
        scale: float,
        use_preselected: bool = False,
        pooling: Pooling = Pooling.SOFTMAX,
    ) -> tuple[Int32, Float32]:
        """The `k` best of the sealed blocks [first, limits[r]) for each row of `queries` [R, Hq, D].

        Returns (ids, scores), [R, S, k] with S = 1 (shared) or the KV heads; ids ascend, padded with -1.
        """
        requests = [
            SelectRequest(
                session_id,
                layer,
                queries,
                self._blocks.count(first, shard),
                self._blocks.counts(limits, shard),
                k,
                shared,
                scale,
                use_preselected,
                pooling,
            )
            for shard in range(len(self.links))
        ]
        if len(self.links) == 1:
            reply = self.links[0].submit_select(requests[0])()
            return reply.ids, reply.scores
        if pooling is Pooling.SOFTMAX:
            lse = self._score(requests)
            replies = self._ask(lambda link, _: link.submit_choose(session_id, lse))
        else:
            replies = self._ask(lambda link, shard: link.submit_select(requests[shard]))
        return merge_choices(replies, self._blocks, k)

    def preselect(
        self,
        session_id: int,
        layer: int,
        queries: Float32,
        *,
        first: int,
        limit: int,
        count: int,
        scale: float,
    ) -> Int32:
        """Chooses the `count` blocks of [first, limit) that `queries` [N, Hq, D] ask for most, for all heads.

        A block's mass is its softmax share, averaged over heads and summed over queries, and each neighbour
        receives a quarter of it. Later selections with `use_preselected` choose among these blocks only.
        """
        mass = np.zeros(max(limit - first, 0), np.float32)
        for start in range(0, len(queries), PRESELECT_ROWS):
            rows = np.ascontiguousarray(queries[start : start + PRESELECT_ROWS])
            self._add_mass(mass, session_id, layer, rows, first, limit, scale)
        spread = mass.copy()
        spread[1:] += np.float32(NEIGHBOUR_SHARE) * mass[:-1]
        spread[:-1] += np.float32(NEIGHBOUR_SHARE) * mass[1:]
        best = np.argsort(-spread, kind="stable")[: max(count, 0)]
        kept = np.sort(best + first).astype(np.int32)
        shards, local = self._blocks.split(kept)
        for shard, link in enumerate(self.links):
            link.keep(session_id, layer, local[shards == shard])
        return kept

    def gather(self, session_id: int, layer: int, blocks: Int32, out: Storage, slots: Int32) -> None:
        """Copies `blocks` into `out[slots]`; out is [num_slots, 2, Hkv, B, D] of storage type."""
        if len(self.links) == 1:
            self.links[0].gather(session_id, layer, blocks, out, slots)
            return
        shards, local = self._blocks.split(blocks)
        for shard, link in enumerate(self.links):
            here = shards == shard
            if here.any():
                link.gather(session_id, layer, local[here], out, slots[here])

    def drop(self, session_id: int) -> None:
        """Frees a session in all shards. Idempotent."""
        self._num_blocks.pop(session_id, None)
        self._each(lambda link, _: link.drop(session_id))

    def stats(self) -> list[StoreStats]:
        """What each shard holds."""
        return [link.stats() for link in self.links]

    def close(self) -> None:
        """Closes the links; the sessions stay. Idempotent."""
        for link in self.links:
            link.close()

    def _score(self, requests: Sequence[SelectRequest]) -> Float32:
        """[R, Hq] log-sum-exp over all shards."""
        parts = self._ask(lambda link, shard: link.submit_score(requests[shard]))
        return np.asarray(np.logaddexp.reduce(parts, axis=0), np.float32)

    def _add_mass(
        self,
        mass: Float32,
        session_id: int,
        layer: int,
        rows: Float32,
        first: int,
        limit: int,
        scale: float,
    ) -> None:
        totals = np.full(len(rows), limit, np.int32)
        requests = [
            SelectRequest(
                session_id,
                layer,
                rows,
                self._blocks.count(first, shard),
                self._blocks.counts(totals, shard),
                0,
                True,
                scale,
            )
            for shard in range(len(self.links))
        ]
        lse = self._score(requests)
        for shard, part in enumerate(self._ask(lambda link, _: link.submit_mass(session_id, lse))):
            local = np.arange(requests[shard].first, requests[shard].first + len(part), dtype=np.int32)
            mass[self._blocks.joined(shard, local) - first] += part

    def _ask(self, submit: Callable[[Link, int], Callable[[], T]]) -> list[T]:
        """Submits to all shards before it waits for any, so that they work at the same time."""
        pending = [submit(link, shard) for shard, link in enumerate(self.links)]
        return self._each(lambda _, shard: pending[shard]())

    def _each(self, action: Callable[[Link, int], T]) -> list[T]:
        """Does `action` with every link, even when one fails; then raises the first failure."""
        answers: list[T] = []
        failure: MoorageError | None = None
        for shard, link in enumerate(self.links):
            try:
                answers.append(action(link, shard))
            except MoorageError as error:
                failure = failure or error
        if failure is not None:
            raise failure
        return answers
