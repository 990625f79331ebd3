"""The stores' memory as one worker of the same host reads and writes it, without asking for each layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moorage.workers.errors import MoorageError, PeerDead
from moorage.workers.kv.arena import Arena
from moorage.workers.kv.link import Link, confirm
from moorage.workers.kv.mapped_shard import MappedShard
from moorage.workers.kv.messages import Int32, Storage
from moorage.workers.kv.operations import CloseBlock, Commit, CommitRow, Confirm
from moorage.workers.kv.stripes import Stripes

if TYPE_CHECKING:
    from moorage.kernels.decode_layer.packed import PackedMemory

Failures = dict[int, MoorageError]
"""Failures by session."""


class HostLayer(NamedTuple):
    """One layer of every link's arena, in the order of the links."""

    kv: tuple[Storage, ...]
    """[P, 2, Hkv, B, D] each, in storage type; pages [P, elements of 16 bits] where blocks are packed."""
    anchors: tuple[Storage, ...]
    """[P, Hkv, A, D] each."""
    codes: tuple[NDArray[np.uint8], ...]
    """[P, bytes] each, of single keys; no bytes where the layout has no codes."""
    packed: PackedMemory | None
    """How packed blocks are read; None where blocks are not packed."""
    centres: tuple[NDArray[np.uint8], ...]
    """[P, bytes] each, of keys; no bytes where the layout has none."""


class HostTables(NamedTuple):
    """Where one session's blocks lie; valid until it grows or shrinks."""

    pages: tuple[Int32, ...]
    """Pages of the session's blocks, by link."""
    first_link: int
    """The link of the first stripe; the others follow in turn."""
    raw_pages: Int32
    """[M, R], by link: see `SessionBatch.raw_pages`."""


@dataclass(frozen=True, slots=True)
class HostBlocks:
    """One session's pages in the arenas of all shards; stripes of blocks are dealt to these in turn."""

    memories: tuple[Storage, ...]
    """Every arena's keys and values, flat."""
    tables: tuple[Int32, ...]
    """Pages of the session's blocks in each arena."""
    layer_sizes: NDArray[np.int64]
    """Elements of one layer in each arena."""
    stripe_blocks: int

    @classmethod
    def of(cls, arenas: list[Arena], tables: list[Int32], stripe_blocks: int) -> HostBlocks:
        """The pages `tables` of `arenas`."""
        sizes = np.array([arena.kv[0].size for arena in arenas], np.int64)
        return cls(tuple(arena.kv.reshape(-1) for arena in arenas), tuple(tables), sizes, stripe_blocks)


class HostMemory:
    """All arenas of a worker, where it maps every one of them.

    `begin` and `commit` stand around the rows that a step writes itself, one of a session in all layers.
    """

    def __init__(
        self,
        links: Sequence[Link],
        shards: Sequence[MappedShard],
        tokens: Stripes,
        first_link: Callable[[int], int],
    ) -> None:
        """`tokens` deals tokens to the shards of a session, of which shard 0 lies at `first_link(session_id)`."""
        self._links, self._shards = tuple(links), tuple(shards)
        self._tokens, self._first_link = tokens, first_link
        self.layout = shards[0].layout
        arenas = [shard.arena for shard in shards]
        self.layers = tuple(layer_of(arenas, layer) for layer in range(self.layout.num_layers))
        self._confirmed: dict[int, list[int]] = {}
        """The `version` of each session in each shard when the stores had sealed all that counted as sealed."""

    def tables(self, session_id: int) -> HostTables:
        """The pages of an open session."""
        tables = [shard.session(session_id).table for shard in self._shards]
        open_pages, sink_pages = self.layout.open_pages, self.layout.sink_pages
        raw_pages = np.zeros((len(tables), open_pages + sink_pages), np.int32)
        for of_link, table in zip(raw_pages, tables, strict=True):
            for first, found in ((0, table.raw.open_pages), (open_pages, table.raw.sink_pages)):
                of_link[first : first + len(found)] = found
        return HostTables(tuple(table.pages for table in tables), self._first_link(session_id), raw_pages)

    def confirm(self, session_id: int) -> None:
        """Waits until the stores have sealed what counts as sealed here; at once where they had and nothing changed.

        Raises what a commit of the session failed with.
        """
        versions = [shard.session(session_id).version for shard in self._shards]
        if self._confirmed.get(session_id) == versions:
            return
        for link in self._links:
            confirm(link, session_id)
        known = self._shards[0].sessions
        self._confirmed = {each: found for each, found in self._confirmed.items() if each in known}
        self._confirmed[session_id] = versions

    def begin(self, rows: Iterable[tuple[int, int]]) -> Failures:
        """Rows (session, position) are about to be written in all layers: from now on their blocks may be read.

        Returns why some may not be written.
        """
        failed: Failures = {}
        for session_id, position in rows:
            try:
                at, local = self._place(session_id, position)
                self._shards[at].session(session_id).table.begin_row(local, self.layout.block_size)
                self._close_block(session_id, position, at)
            except MoorageError as error:
                failed[session_id] = error
        return failed

    def _close_block(self, session_id: int, position: int, link: int) -> None:
        """Where the row at `position` begins a block on `link`, and the block before lies on another: closes that."""
        if self.layout.is_packed and position and position % self.layout.block_size == 0:
            before, _ = self._place(session_id, position - 1)
            if before != link:
                closed = [CloseBlock(session_id, layer) for layer in range(self.layout.num_layers)]
                self._links[before].post(*closed)

    def commit(self, rows: Iterable[tuple[int, int]]) -> Failures:
        """Rows (session, position) are complete in all layers.

        Waits where they fill a block, until it is sealed. Returns by session why commits failed, which may be
        earlier ones.
        """
        parts: list[list[tuple[int, int]]] = [[] for _ in self._links]
        for session_id, position in rows:
            at, local = self._place(session_id, position)
            parts[at].append((session_id, local))
        failed: Failures = {}
        for link, part in zip(self._links, parts, strict=True):
            if not part:
                continue
            link.post(*[CommitRow(session_id, local) for session_id, local in part])
            if any((local + 1) % self.layout.block_size == 0 for _, local in part):
                failed |= _failures(link, [session_id for session_id, _ in part])
        return failed

    def commit_layer(self, layer: int, rows: Iterable[tuple[int, int]]) -> None:
        """Rows (session, position) are complete in one layer, whose anchors are then asked for in the same step.

        Does not wait. What fails comes out at the session's next exchange.
        """
        for session_id, position in rows:
            at, local = self._place(session_id, position)
            self._links[at].post(Commit(session_id, layer, local, local + 1))

    def _place(self, session_id: int, position: int) -> tuple[int, int]:
        """(link, position in its store) of a token."""
        shard, local = self._tokens.place(position)
        return (self._first_link(session_id) + shard) % len(self._links), local


def layer_of(arenas: Sequence[Arena], layer: int) -> HostLayer:
    """One layer of all arenas."""
    layout, codec, packed = arenas[0].layout, arenas[0].codec, None
    kv = tuple(arena.kv[layer] for arena in arenas)
    if codec is not None:
        from moorage.kernels.decode_layer.packed import PackedMemory
        from moorage.kernels.packed_blocks.unpack import packed_layer

        tables = packed_layer(codec.layout_of(layer), codec.tables_of(layer))
        packed = PackedMemory(tables, layout.raw_rows, layout.fp16_sinks)
        kv = tuple(arena.stored[layer].view(np.uint16) for arena in arenas)
    anchors, codes = (
        tuple(arena.anchors[layer] for arena in arenas),
        tuple(arena.codes[layer] for arena in arenas),
    )
    return HostLayer(kv, anchors, codes, packed, tuple(arena.centres[layer] for arena in arenas))


def _failures(link: Link, session_ids: list[int]) -> Failures:
    """Waits until all is sealed that was committed on a link; returns why commits of some sessions failed."""
    if len(session_ids) > 1 and _failure(link, session_ids) is None:
        return {}
    # A failure among several is left for each session to be told alone.
    alone = {session_id: _failure(link, [session_id]) for session_id in session_ids}
    return {session_id: error for session_id, error in alone.items() if error is not None}


def _failure(link: Link, session_ids: list[int]) -> MoorageError | None:
    try:
        link.call(Confirm(np.array(session_ids, np.int64)))
    except PeerDead:
        raise
    except MoorageError as error:
        return error
    return None
