"""The KV store of one shard: sessions, their pages, sealing and selection. Runs without Ray or sockets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moorage.workers.errors import InvalidRequest
from moorage.workers.kv.anchors import AnchorBuilder
from moorage.workers.kv.arena import Arena
from moorage.workers.kv.mapped_shard import MappedShard
from moorage.workers.kv.messages import (
    AnchorRotation,
    Attached,
    Float32,
    Int32,
    StoreStats,
)
from moorage.workers.kv.page_allocator import PageAllocator
from moorage.workers.kv.shard_session import ShardSession
from moorage.workers.kv.shared_memory import HUGE_BYTES
from moorage.workers.spec import AnchorSpace, KvLayout


class KvStore:
    """Sessions in one arena. Token positions and block ids are those of this shard alone.

    Not thread-safe: whoever shares a store between threads lets one in at a time.
    """

    def __init__(self, layout: KvLayout, num_pages: int) -> None:
        self.layout = layout
        self.arena = Arena(layout, num_pages)
        self._pages = PageAllocator(num_pages)
        self.shard = MappedShard(self.arena, "in this KV store; open it first")
        self._anchors = AnchorBuilder(self.arena)

    def open(self, session_id: int, num_blocks: int, rotation: AnchorRotation | None = None) -> Int32:
        """Reserves pages and returns them. If StoreFull or InvalidRequest is raised, nothing has changed.

        `rotation` is needed where anchors summarise rotated keys, and ignored elsewhere.
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
        pages = self._pages.allocate(num_blocks, session_id)
        if rotation is not None:
            rotation = replace(rotation, inv_freq=rotation.inv_freq.copy())
        self.shard.open(session_id, pages, rotation=rotation)
        return pages

    def resize(self, session_id: int, num_blocks: int) -> Int32:
        """Grows a session, or frees its unwritten end; returns all its pages.

        If StoreFull or InvalidRequest is raised, nothing has changed.
        """
        table = self.shard.session(session_id).table
        written = self.layout.num_blocks(max(table.num_tokens))
        if num_blocks < written:
            raise InvalidRequest(
                f"session {session_id}: {written} blocks are written; truncate before shrinking"
            )
        held = len(table.pages)
        if num_blocks > held:
            more = self._pages.allocate(num_blocks - held, session_id)
            table.pages = np.concatenate((table.pages, more))
        else:
            self._pages.free(table.pages[num_blocks:])
            table.pages = table.pages[:num_blocks].copy()
        return table.pages

    def fork(self, session_id: int, new_id: int, num_blocks: int) -> Attached:
        """Opens a session that holds the first blocks of another, all sealed, on the same pages. Idempotent.

        Nobody writes to a page that several sessions hold: see `own_block`.
        """
        if new_id not in self.shard.sessions:
            session = self.shard.session(session_id)
            if not 0 <= num_blocks <= min(session.num_sealed):
                raise InvalidRequest(
                    f"session {session_id}: {num_blocks} blocks to share, {min(session.num_sealed)} are sealed"
                )
            pages, count = session.table.pages[:num_blocks].copy(), self.layout.num_layers
            self._pages.share(pages)
            tokens = [num_blocks * self.layout.block_size] * count
            self.shard.open(new_id, pages, tokens, [num_blocks] * count, session.rotation)
        return self.attach(new_id)

    def own_block(self, session_id: int, block: int) -> Int32:
        """Gives a session a copy of a block that it shares and is about to write to; returns all its pages.

        The block is not sealed any longer. If StoreFull is raised, nothing has changed.
        """
        table = self.shard.session(session_id).table
        page = int(table.pages[block])
        if self._pages.is_shared(page):
            (copy,) = self._pages.allocate(1, session_id)
            self.arena.kv[:, copy] = self.arena.kv[:, page]
            self._pages.free(table.pages[block : block + 1])
            table.pages = table.pages.copy()
            table.pages[block] = copy
        return table.pages

    def restore(self, session_id: int, num_blocks: int) -> None:
        """See MappedShard."""
        self.shard.restore(session_id, num_blocks)

    def attach(self, session_id: int) -> Attached:
        """What is stored of an open session, for a worker that takes it over."""
        session = self.shard.session(session_id)
        return Attached(
            session.table.pages,
            np.array(session.table.num_tokens, np.int32),
            np.array(session.num_sealed, np.int32),
        )

    def write(self, session_id: int, layer: int, start: int, keys: ArrayLike, values: ArrayLike) -> None:
        """Stores rows [T, Hkv, D] from token `start` on; they count once they are committed."""
        self.shard.write(session_id, layer, start, keys, values)

    def commit(self, session_id: int, layer: int, start: int, end: int) -> None:
        """Rows [start, end) of `layer` lie in the arena; what was stored after them is gone.

        Seals the blocks that are now full: builds their anchors.
        """
        full = self.shard.commit(session_id, layer, start, end)
        if end - start > 1:
            self._ask_huge(session_id, layer, start, end)
        if full:
            session = self.shard.session(session_id)
            pages = session.table.pages[full.start : full.stop]
            self._anchors.build(layer, pages, full.start, session.rotation)
            self.shard.seal(session_id, layer, full.stop)

    def _ask_huge(self, session_id: int, layer: int, start: int, end: int) -> None:
        """Has huge pages for all rows so far, and for as many again as have just come, of a layer that fills one."""
        num_blocks = self.layout.num_blocks(2 * end - start)
        if num_blocks * self.layout.block_bytes >= HUGE_BYTES:
            self.arena.ask_huge(layer, self.shard.session(session_id).table.pages[:num_blocks])

    def commit_row(self, session_id: int, position: int) -> None:
        """`commit` of the row at `position` in all layers."""
        if not self.shard.extend(session_id, position):
            for layer in range(self.layout.num_layers):
                self.commit(session_id, layer, position, position + 1)

    def append(self, session_id: int, layer: int, start: int, keys: ArrayLike, values: ArrayLike) -> None:
        """Writes and commits rows [T, Hkv, D]."""
        end = self.shard.write(session_id, layer, start, keys, values)
        self.commit(session_id, layer, start, end)

    def rebuild_anchors(self, session_id: int, layer: int, first: int, importance: Float32) -> None:
        """Makes the anchors of sealed blocks [first, first + n) from their most important keys.

        `importance` [n, Hkv, B] says how much attention each key received.
        """
        session = self.shard.session(session_id)
        session.table.check_layer(layer)
        layout, end = self.layout, first + len(importance)
        if importance.shape[1:] != (layout.num_kv_heads, layout.block_size):
            raise InvalidRequest(
                f"importance of shape {importance.shape}; expected [blocks, {layout.num_kv_heads}, "
                f"{layout.block_size}]"
            )
        if not 0 <= first <= end <= session.num_sealed[layer] or not layout.anchor_type.needs_importance:
            raise InvalidRequest(
                f"session {session_id}, layer {layer}: importance for blocks {first} to {end - 1} of "
                f"{session.num_sealed[layer]} sealed, {layout.anchor_type} anchors; send it for sealed blocks only"
            )
        self._anchors.build(layer, session.table.pages[first:end], first, session.rotation, importance)
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
            self._pages.free(session.table.pages)

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
        """Raises RuntimeError if the free list, the page tables and the sealed counts disagree."""
        tables = [session.table for session in self.shard.sessions.values()]
        held = np.concatenate([np.empty(0, np.int32), *(table.pages for table in tables)])
        if (np.bincount(held, minlength=self._pages.num_pages) != self._pages.holders).any():
            raise RuntimeError("KV store: sessions hold other pages than are counted as held")
        if np.count_nonzero(self._pages.holders == 0) != self._pages.num_free:
            raise RuntimeError("KV store: the count of free pages is wrong")
        for session in self.shard.sessions.values():
            self._check_session(session)

    def _check_session(self, session: ShardSession) -> None:
        table, size = session.table, self.layout.block_size
        for layer, (tokens, sealed) in enumerate(zip(table.num_tokens, session.num_sealed, strict=True)):
            if not (sealed <= tokens // size and tokens <= len(table.pages) * size):
                raise RuntimeError(
                    f"KV store: session {table.session_id}, layer {layer}: {sealed} sealed blocks, "
                    f"{tokens} tokens and {len(table.pages)} pages disagree"
                )

    def close(self) -> None:
        """Removes all sessions and gives the memory back. Idempotent."""
        self.shard.close()
