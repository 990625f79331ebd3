"""The KV store of one shard: sessions, their pages, sealing and selection. Runs without Ray or sockets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moorage.workers.errors import InvalidRequest
from moorage.workers.kv.arena import Arena
from moorage.workers.kv.formats.quantizer import Quantizer
from moorage.workers.kv.integrity import check_importance, check_pages
from moorage.workers.kv.mapped_shard import MappedShard
from moorage.workers.kv.messages import AnchorRotation, Attached, Float32, Int32, StoreStats
from moorage.workers.kv.page_allocator import PageAllocator
from moorage.workers.kv.shared_memory import HUGE_BYTES
from moorage.workers.spec import AnchorSpace, KvLayout


class KvStore:
    """Sessions in one arena. Token positions and block ids are those of this shard alone.

    Not thread-safe: whoever shares a store between threads lets one in at a time.
    """

    def __init__(self, layout: KvLayout, num_pages: int, quantizer: Quantizer | None = None) -> None:
        self.layout = layout
        self.arena = Arena(layout, num_pages, quantizer)
        self._pages = PageAllocator(num_pages)
        self.shard = MappedShard(self.arena, "in this KV store; open it first")

    def open(
        self,
        session_id: int,
        num_blocks: int,
        rotation: AnchorRotation | None = None,
        has_first: bool = True,
        is_written: bool = True,
    ) -> Int32:
        """Reserves pages and returns those of blocks. If StoreFull or InvalidRequest is raised, nothing has changed.

        `rotation` is needed where anchors summarise rotated keys, and ignored elsewhere. `has_first` says whether the
        session's first tokens are stored here, `is_written` whether rows will come that fill no block yet.
        """
        if session_id in self.shard.sessions:
            raise InvalidRequest(f"session {session_id} is open already; drop it first or attach to it")
        if num_blocks < 0:
            raise InvalidRequest(f"session {session_id}: {num_blocks} blocks; ask for none or more")
        if self.layout.anchor_space is AnchorSpace.PLAIN:
            rotation = None
        elif rotation is None:
            raise InvalidRequest(
                f"session {session_id}: anchors of rotated keys need angles; open it with them"
            )
        num_open = self.layout.open_pages if is_written else 0
        num_sinks = self.layout.sink_pages if has_first and num_blocks else 0
        found = self._pages.allocate(num_blocks + num_open + num_sinks, session_id)
        pages, *raw = np.split(found, [num_blocks, num_blocks + num_open])
        if rotation is not None:
            rotation = replace(rotation, inv_freq=rotation.inv_freq.copy())
        self.shard.open(session_id, pages, None, None, rotation, *raw)
        return pages

    def open_attached(
        self,
        session_id: int,
        num_blocks: int,
        rotation: AnchorRotation | None,
        has_first: bool,
        is_written: bool,
    ) -> Attached:
        """`open`, and what a worker must know of the session."""
        self.open(session_id, num_blocks, rotation, has_first, is_written)
        return self.attach(session_id)

    def resize(self, session_id: int, num_blocks: int, is_written: bool = True) -> Attached:
        """Grows a session, or frees its unwritten end; returns all its pages. `is_written` as in `open`.

        If StoreFull or InvalidRequest is raised, nothing has changed.
        """
        table = self.shard.session(session_id).table
        written = self.layout.num_blocks(max(table.num_tokens))
        if num_blocks < written:
            raise InvalidRequest(
                f"session {session_id}: {written} blocks are written; truncate before shrinking"
            )
        raw, held = table.raw, len(table.pages)
        num_open = self.layout.open_pages if is_written else 0
        more = max(0, num_blocks - held), max(0, num_open - len(raw.open_pages))
        found = np.split(self._pages.allocate(sum(more), session_id), [more[0]])
        table.pages = self._cut(np.concatenate((table.pages, found[0])), num_blocks)
        raw.open_pages = self._cut(np.concatenate((raw.open_pages, found[1])), num_open)
        if not num_blocks:
            raw.sink_pages = self._cut(raw.sink_pages, 0)
        if not num_open:
            raw.block = [-1] * self.layout.num_layers
        return self.attach(session_id)

    def _cut(self, pages: Int32, count: int) -> Int32:
        """The first `count` pages; the others are freed."""
        self._pages.free(pages[count:])
        return pages[:count].copy()

    def fork(self, session_id: int, new_id: int, num_blocks: int, num_rest: int = 0) -> Attached:
        """Opens a session that holds the first blocks of another, all sealed, on the same pages. Idempotent.

        It has a copy of the next block if that has `num_rest` of its tokens. Nobody writes to a page that several
        sessions hold: see `own_block`. If StoreFull is raised, nothing has changed.
        """
        if new_id not in self.shard.sessions:
            session = self.shard.session(session_id)
            if not 0 <= num_blocks <= min(session.num_sealed):
                raise InvalidRequest(
                    f"session {session_id}: {num_blocks} blocks to share, {min(session.num_sealed)} are sealed"
                )
            pages, count = session.table.pages[:num_blocks].copy(), self.layout.num_layers
            sinks = session.table.raw.sink_pages[: self.layout.sink_pages if num_blocks else 0].copy()
            rest = self._copies(session.table.pages[num_blocks : num_blocks + bool(num_rest)], new_id)
            for shared in (pages, sinks):
                self._pages.share(shared)
            tokens, pages = [num_blocks * self.layout.block_size + num_rest] * count, np.append(pages, rest)
            self.shard.open(new_id, pages, tokens, [num_blocks] * count, session.rotation, None, sinks)
        return self.attach(new_id)

    def own_block(self, session_id: int, block: int) -> Int32:
        """Gives a session a copy of a block that it shares and is about to write to; returns all its pages.

        The block is not sealed any longer. If StoreFull is raised, nothing has changed.
        """
        table = self.shard.session(session_id).table
        page = int(table.pages[block])
        if self._pages.is_shared(page):
            (copy,) = self._copies(table.pages[block : block + 1], session_id)
            self._pages.free(table.pages[block : block + 1])
            table.pages = table.pages.copy()
            table.pages[block] = copy
        return table.pages

    def _copies(self, pages: Int32, session_id: int) -> Int32:
        """Pages of a session with copies of the blocks on `pages`."""
        copies = self._pages.allocate(len(pages), session_id)
        for stored in self.arena.stored:
            stored[copies] = stored[pages]
        return copies

    def restore(self, session_id: int, num_blocks: int, num_rest: int = 0) -> None:
        """See MappedShard."""
        self.shard.restore(session_id, num_blocks, num_rest)

    def attach(self, session_id: int) -> Attached:
        """What is stored of an open session, for a worker that takes it over."""
        session = self.shard.session(session_id)
        return Attached(
            session.table.pages,
            np.array(session.table.num_tokens, np.int32),
            np.array(session.num_sealed, np.int32),
            session.table.raw.open_pages,
            session.table.raw.sink_pages,
            session.rotation,
        )

    def write(self, session_id: int, layer: int, start: int, keys: ArrayLike, values: ArrayLike) -> None:
        """Stores rows [T, Hkv, D] from token `start` on; they count once they are committed."""
        self.shard.write(session_id, layer, start, keys, values)

    def commit(self, session_id: int, layer: int, start: int, end: int, is_sealed: bool = False) -> None:
        """Rows [start, end) of `layer` lie in the arena; what was stored after them is gone.

        Seals the blocks that are now full, unless who wrote them has: builds their anchors, and packs them.
        """
        full = self.shard.commit(session_id, layer, start, end)
        if end - start > 1:
            self._ask_huge(session_id, layer, start, end)
        if full:
            session = self.shard.session(session_id)
            if self.shard.packed is None:
                pages = session.table.pages[full.start : full.stop]
                self.shard.anchors.build(layer, pages, full.start, session.rotation)
            elif not is_sealed:
                self.shard.packed.seal_open(session, layer, full.start)
            self.shard.seal(session_id, layer, full.stop)

    def _ask_huge(self, session_id: int, layer: int, start: int, end: int) -> None:
        """Has huge pages for all rows so far, and for as many again as have just come, of a layer that fills one."""
        num_blocks = self.layout.num_blocks(2 * end - start)
        if num_blocks * self.layout.block_bytes >= HUGE_BYTES:
            self.arena.ask_huge(layer, self.shard.session(session_id).table.pages[:num_blocks])

    def close_block(self, session_id: int, layer: int) -> None:
        """See MappedShard."""
        self.shard.close_block(session_id, layer)

    def commit_row(self, session_id: int, position: int) -> None:
        """`commit` of the row at `position` in all layers."""
        if not self.shard.extend(session_id, position):
            for layer in range(self.layout.num_layers):
                self.commit(session_id, layer, position, position + 1)

    def append(self, session_id: int, layer: int, start: int, keys: ArrayLike, values: ArrayLike) -> None:
        """Writes and commits rows [T, Hkv, D]."""
        end = self.shard.write(session_id, layer, start, keys, values)
        self.commit(session_id, layer, start, end, is_sealed=self.layout.is_packed)

    def reseal(self, session_id: int, layer: int, num_tokens: int) -> None:
        """Makes the anchors of the sealed blocks among `num_tokens` tokens from all of their keys again."""
        session = self.shard.session(session_id)
        pages = session.table.pages[: num_tokens // self.layout.block_size]
        self.shard.anchors.build(layer, pages, 0, session.rotation)
        self.shard.invalidate(session_id, layer)

    def rebuild_anchors(self, session_id: int, layer: int, first: int, importance: Float32) -> None:
        """Makes the anchors of sealed blocks [first, first + n) from their most important keys.

        `importance` [n, Hkv, B] says how much attention each key received.
        """
        session, end = self.shard.session(session_id), first + len(importance)
        check_importance(session, self.layout, layer, first, importance)
        self.shard.anchors.build(layer, session.table.pages[first:end], first, session.rotation, importance)
        self.shard.invalidate(session_id, layer)

    def truncate(self, session_id: int, num_tokens: int) -> None:
        """Removes the tokens after the first `num_tokens`; the pages stay reserved."""
        if num_tokens < 0:
            raise InvalidRequest(f"session {session_id}: truncate to {num_tokens} tokens; keep none or more")
        self.shard.truncate(session_id, num_tokens)

    def confirm(self, session_ids: NDArray[np.int64]) -> None:
        """Does nothing: an answer says that all commits before are done."""

    def drop(self, session_id: int) -> None:
        """Frees a session's pages. Idempotent."""
        session = self.shard.drop(session_id)
        if session is not None:
            for pages in (session.table.pages, session.table.raw.open_pages, session.table.raw.sink_pages):
                self._pages.free(pages)

    def stats(self) -> StoreStats:
        """Counts and bytes."""
        held = self._pages.num_pages - self._pages.num_free
        return StoreStats(
            num_pages=self._pages.num_pages,
            free_pages=self._pages.num_free,
            num_sessions=len(self.shard.sessions),
            num_sealed=sum(min(session.num_sealed) for session in self.shard.sessions.values()),
            used_bytes=held * self.layout.page_bytes,
            capacity_bytes=self.arena.num_bytes,
            anchor_bytes=self._pages.num_pages * self.layout.page_anchor_bytes,
        )

    def check_integrity(self) -> None:
        """See `kv.integrity`."""
        check_pages(self.shard, self._pages)

    def close(self) -> None:
        """Removes all sessions and gives the memory back. Idempotent."""
        self.shard.close()
