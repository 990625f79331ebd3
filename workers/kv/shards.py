"""One view of a KV cache that several stores share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moorage.workers.errors import MoorageError
from moorage.workers.kv.appending import append_rows
from moorage.workers.kv.host_memory import HostBlocks, HostMemory
from moorage.workers.kv.link import Link, gather
from moorage.workers.kv.mapped_shard import MappedShard
from moorage.workers.kv.messages import (
    AnchorRotation,
    Float32,
    Int32,
    SelectReply,
    SelectRequest,
    Storage,
    StoreStats,
)
from moorage.workers.kv.operations import (
    Attach,
    Drop,
    Fork,
    Open,
    OwnBlock,
    RebuildAnchors,
    Reseal,
    Resize,
    Restore,
    Stats,
    Truncate,
)
from moorage.workers.kv.shard_keys import ShardKeys
from moorage.workers.kv.shard_selection import ShardSelection, all_of
from moorage.workers.kv.stripes import Stripes
from moorage.workers.spec import HeadPool, KvLayout, Scorer


class ShardedKv:
    """Global block ids and token positions over several links; the worker's only way to stored KV.

    Block b lies in stripe b // stripe_blocks, and the stripes are dealt to the shards in turn. Each session counts
    its shards from a link of its own, so that short sessions do not all lie in the first. With one link nothing is
    translated. Selections equal those of one store that held everything.
    """

    def __init__(
        self, links: Sequence[Link], layout: KvLayout, stripe_blocks: int = 8, score_here: bool = False
    ) -> None:
        """With `score_here`, selections run in this process wherever it maps a store's memory; then no other worker
        may ask these stores for any."""
        if not links or stripe_blocks < 1:
            raise ValueError(f"{len(links)} links and stripes of {stripe_blocks} blocks; at least 1 each")
        self.links = tuple(links)
        for link in self.links:
            link.scores_here = score_here and layout.scorer is Scorer.NUMBA
        self._turns = [self.links[first:] + self.links[:first] for first in range(len(links))]
        self.layout = layout
        self.stripe_blocks = stripe_blocks
        self._blocks = Stripes(len(links), stripe_blocks)
        self._tokens = Stripes(len(links), stripe_blocks * layout.block_size)
        self._num_blocks: dict[int, int] = {}
        self._first: dict[int, int] = {}
        """The link of each session's shard 0, where that is not link 0."""
        # Given a method of its own, the two would hold each other, and arenas would outlive the last use of them.
        first_link = partial(_link_of, self._first)
        self._selection = ShardSelection(self.links, self._blocks, first_link)
        self.keys = ShardKeys(self.links, layout, stripe_blocks, first_link)

    def open(
        self,
        session_id: int,
        num_blocks: int,
        inv_freq: NDArray[np.float64] | None = None,
        first_shard: int = 0,
        is_written: bool = True,
    ) -> None:
        """Reserves room in all shards. If StoreFull or InvalidRequest is raised, nothing has changed.

        `inv_freq` [rotary_dim / 2], or by layer [L, rotary_dim / 2], is needed where anchors summarise rotated keys.
        `first_shard` is the link that gets the first stripe. Without `is_written` all rows come as whole blocks.
        """
        links = self._in_turn(first_shard)
        for shard, link in enumerate(links):
            stripes = (shard, len(self.links), self._blocks.length)
            rotation = None if inv_freq is None else AnchorRotation(inv_freq, *stripes)
            try:
                count = self._blocks.count(num_blocks, shard)
                link.call(Open(session_id, count, rotation, shard == 0, is_written))
            except MoorageError:
                for opened in links[:shard]:
                    opened.call(Drop(session_id))
                raise
        self._num_blocks[session_id] = num_blocks
        self._first[session_id] = first_shard % len(self.links)

    def first_shard(self, session_id: int) -> int:
        """The link that has a session's first stripe."""
        return _link_of(self._first, session_id)

    def grow(self, session_id: int, num_blocks: int) -> None:
        """Allocates up to `num_blocks` blocks for a session that is written to; never shrinks.

        If StoreFull is raised, nothing has changed.
        """
        held = self._num_blocks.get(session_id, 0)
        if num_blocks <= held and not self.layout.is_packed:
            return
        num_blocks = max(num_blocks, held)
        links = self._links_of(session_id)
        for shard, link in enumerate(links):
            try:
                link.call(Resize(session_id, self._blocks.count(num_blocks, shard)))
            except MoorageError:
                for grown, before in enumerate(links[:shard]):
                    before.call(Resize(session_id, self._blocks.count(held, grown)))
                raise
        self._num_blocks[session_id] = num_blocks

    def trim(self, session_id: int, num_tokens: int) -> None:
        """Removes the tokens after the first `num_tokens`, and frees the blocks that hold none of these.

        Nothing is written until the session grows.
        """
        self.truncate(session_id, num_tokens)
        num_blocks = self.layout.num_blocks(num_tokens)
        counts = [self._blocks.count(num_blocks, shard) for shard in range(len(self.links))]
        self._each(session_id, lambda link, shard: link.call(Resize(session_id, counts[shard], False)))
        self._num_blocks[session_id] = num_blocks

    def fork(self, session_id: int, new_id: int, num_blocks: int, num_rest: int = 0) -> None:
        """Opens a session that shares the first blocks of another, all sealed, on the same pages. Idempotent.

        It has a copy of the next block if that has `num_rest` of its tokens.
        """
        parts = self._parts_of(num_blocks, num_rest)
        self._each(session_id, lambda link, shard: link.call(Fork(session_id, new_id, *parts[shard])))
        self._num_blocks[new_id] = num_blocks + bool(num_rest)
        self._first[new_id] = self.first_shard(session_id)

    def restore(self, session_id: int, num_blocks: int, num_rest: int = 0) -> None:
        """Counts the first blocks of a new session as sealed in all layers, and `num_rest` tokens after them as
        stored; their bytes come from files."""
        parts = self._parts_of(num_blocks, num_rest)
        self._each(session_id, lambda link, shard: link.call(Restore(session_id, *parts[shard])))

    def _parts_of(self, num_blocks: int, num_rest: int) -> list[tuple[int, int]]:
        """Of each shard, how many of the first blocks it has, and how many tokens of the block after them."""
        last, _ = self._blocks.place(num_blocks)
        return [
            (self._blocks.count(num_blocks, shard), num_rest if shard == last else 0)
            for shard in range(len(self.links))
        ]

    def own(self, session_id: int, num_tokens: int) -> None:
        """Lets a session of `num_tokens` tokens write after them: its last block, if partly filled, is its own."""
        block, filled = divmod(num_tokens, self.layout.block_size)
        if filled:
            shard, local = self._blocks.place(block)
            self._links_of(session_id)[shard].call(OwnBlock(session_id, local))

    def attach(self, session_id: int, num_blocks: int, first_shard: int = 0) -> int:
        """Takes over a session of `num_blocks` blocks that another worker opened, as it was opened.

        Cuts it back to the tokens that all layers of all shards hold without a hole; returns their number.
        """
        links = self._in_turn(first_shard)
        num_tokens = self._tokens.held(
            [int(link.call(Attach(session_id)).num_tokens.min()) for link in links]
        )
        if self.layout.is_packed:  # The rows of the open block may be half written.
            num_tokens -= num_tokens % self.layout.block_size
        self._first[session_id] = first_shard % len(self.links)
        self._num_blocks[session_id] = num_blocks
        self.truncate(session_id, num_tokens)
        return num_tokens

    def append(self, session_id: int, layer: int, start: int, keys: ArrayLike, values: ArrayLike) -> None:
        """Stores rows [T, Hkv, D] (float32, float16 or bits of fp16) from token `start` on.

        A start before the end replaces what was stored from there on.
        """
        links, are_packed = self._links_of(session_id), self.layout.is_packed
        append_rows(links, self._tokens, session_id, layer, start, keys, values, are_packed)

    def truncate(self, session_id: int, num_tokens: int) -> None:
        """Removes the tokens after the first `num_tokens`."""
        counts = [self._tokens.count(num_tokens, shard) for shard in range(len(self.links))]
        self._each(session_id, lambda link, shard: link.call(Truncate(session_id, counts[shard])))

    def reseal(self, session_id: int, num_tokens: int) -> None:
        """Makes the anchors of the first `num_tokens` as they were when their blocks were sealed; keeps no others."""
        for layer in range(self.layout.num_layers):
            for shard, link in enumerate(self._links_of(session_id)):
                link.post(Reseal(session_id, layer, self._tokens.count(num_tokens, shard)))

    def select(self, request: SelectRequest) -> SelectReply:
        """See ShardSelection."""
        return self._selection.select(request)

    def answers_together(self, pooling: HeadPool) -> bool:
        """See ShardSelection."""
        return self._selection.answers_together(pooling)

    def select_together(self, requests: Sequence[SelectRequest]) -> list[Int32]:
        """See ShardSelection."""
        return self._selection.select_together(requests)

    def preselect(self, session_id: int, layer: int, blocks: Int32, limit: int) -> None:
        """See ShardSelection."""
        self._selection.preselect(session_id, layer, blocks, limit)

    def rebuild_anchors(self, session_id: int, layer: int, first: int, importance: Float32) -> None:
        """Makes anchors of sealed blocks from `first` on, given their keys' importance [n, Hkv, B]."""
        shards, local = self._blocks.split(np.arange(first, first + len(importance), dtype=np.int32))
        for shard, link in enumerate(self._links_of(session_id)):
            here = shards == shard
            if here.any():
                link.call(RebuildAnchors(session_id, layer, int(local[here][0]), importance[here]))

    def gather(self, session_id: int, layer: int, blocks: Int32, out: Storage, slots: Int32) -> None:
        """Copies `blocks` into `out[slots]`; out is [num_slots, 2, Hkv, B, D] of storage type."""
        for link, local, places in self.parts(session_id, blocks):
            gather(link, session_id, layer, local, out, slots[places])

    def parts(self, session_id: int, blocks: Int32) -> Iterator[tuple[Link, Int32, Int32]]:
        """(link, ids in its store, places in `blocks`) of each shard that holds some of a session's `blocks`."""
        if len(self.links) == 1:
            yield self.links[0], blocks, np.arange(len(blocks), dtype=np.int32)
            return
        shards, local = self._blocks.split(blocks)
        for shard, link in enumerate(self._links_of(session_id)):
            places = np.flatnonzero(shards == shard).astype(np.int32)
            if len(places):
                yield link, local[places], places

    def host_memory(self) -> HostMemory | None:
        """The stores' memory, where this process maps all of it and kernels read blocks where they lie."""
        shards = [link.shard for link in self.links if link.shard is not None]
        if len(shards) < len(self.links):
            return None
        return HostMemory(self.links, shards, self._tokens, self.first_shard)

    def host_blocks(self, session_id: int) -> HostBlocks | None:
        """A session's blocks as this process maps them, until it grows; None when a shard is on another host."""
        shards = _readable(self._links_of(session_id))
        if shards is None:
            return None
        pages = [shard.session(session_id).table.pages for shard in shards]
        return HostBlocks.of([shard.arena for shard in shards], pages, self._blocks.length)

    def drop(self, session_id: int) -> None:
        """Frees a session in all shards. Idempotent."""
        self._num_blocks.pop(session_id, None)
        self._each(session_id, lambda link, _: link.call(Drop(session_id)))
        self._first.pop(session_id, None)

    def stats(self) -> list[StoreStats]:
        """What each shard holds."""
        return [link.call(Stats()) for link in self.links]

    def close(self) -> None:
        """Closes the links; the sessions stay. Idempotent."""
        for link in self.links:
            link.close()

    def _links_of(self, session_id: int) -> Sequence[Link]:
        """The links in the order of a session's shards."""
        return self._in_turn(self._first.get(session_id, 0))

    def _in_turn(self, first: int) -> Sequence[Link]:
        return self._turns[first % len(self._turns)]

    def _each(self, session_id: int, action: Callable[[Link, int], object]) -> None:
        """Does `action` with the link of each of a session's shards, even when one fails; then raises."""
        links = self._links_of(session_id)
        all_of([partial(action, link, shard) for shard, link in enumerate(links)])


def _link_of(first: Mapping[int, int], session_id: int) -> int:
    return first.get(session_id, 0)


def _readable(links: Sequence[Link]) -> list[MappedShard] | None:
    found = [link.shard for link in links if link.shard is not None and link.shard.is_readable]
    return found if len(found) == len(links) else None
