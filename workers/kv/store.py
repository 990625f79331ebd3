"""The KV store of one shard: sessions, their pages, sealing and selection. Runs without Ray or sockets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from moorage.kernels.block_gather import gather_blocks
from moorage.workers.errors import InvalidRequest, NotFound
from moorage.workers.kv.anchors import AnchorBuilder
from moorage.workers.kv.arena import Arena
from moorage.workers.kv.block_table import BlockTable, PageAllocator
from moorage.workers.kv.messages import (
    AnchorRotation,
    Float32,
    Int32,
    SelectReply,
    SelectRequest,
    Storage,
    StoreStats,
)
from moorage.workers.kv.selector import Asked, Preselection, Scoring, Selector
from moorage.workers.spec import AnchorSpace, KvLayout


@dataclass(slots=True)
class StoredSession:
    """What the store knows of one session."""

    table: BlockTable
    num_sealed: list[int]
    """By layer: the first blocks, full and with anchors."""
    kept: dict[int, Preselection] = field(default_factory=dict)
    """By layer: the preselected blocks."""
    rotation: AnchorRotation | None = None
    """Set when anchors summarise rotated keys."""
    scoring: Scoring | None = None
    """A scored request that waits for its `choose`."""


class KvStore:
    """Sessions in one arena. Token positions and block ids are those of this shard alone.

    Not thread-safe: whoever shares a store between threads lets one in at a time.
    """

    def __init__(self, layout: KvLayout, num_pages: int) -> None:
        self.layout = layout
        self.arena = Arena(layout, num_pages)
        self._pages = PageAllocator(num_pages)
        self._sessions: dict[int, StoredSession] = {}
        self._selector = Selector(self.arena)
        self._anchors = AnchorBuilder(self.arena)

    def open(self, session_id: int, num_blocks: int, rotation: AnchorRotation | None = None) -> Int32:
        """Reserves pages and returns them. If StoreFull or InvalidRequest is raised, nothing has changed.

        `rotation` is needed where anchors summarise rotated keys, and ignored elsewhere.
        """
        if session_id in self._sessions:
            raise InvalidRequest(f"session {session_id} is open already; drop it first or attach to it")
        if num_blocks < 0:
            raise InvalidRequest(f"session {session_id}: {num_blocks} blocks; ask for none or more")
        if self.layout.anchor_space is AnchorSpace.PLAIN:
            rotation = None
        elif rotation is None:
            raise InvalidRequest(
                f"session {session_id}: anchors of rotated keys need angles; open it with them"
            )
        pages = self._pages.take(num_blocks, session_id)
        table = BlockTable(session_id, pages, [0] * self.layout.num_layers)
        self._sessions[session_id] = StoredSession(table, [0] * self.layout.num_layers, rotation=rotation)
        return pages

    def resize(self, session_id: int, num_blocks: int) -> Int32:
        """Grows a session, or gives back its unwritten end; returns all its pages.

        If StoreFull or InvalidRequest is raised, nothing has changed.
        """
        table = self._session(session_id).table
        written = self.layout.num_blocks(max(table.num_tokens))
        if num_blocks < written:
            raise InvalidRequest(
                f"session {session_id}: {written} blocks are written; truncate before shrinking"
            )
        held = len(table.pages)
        if num_blocks > held:
            more = self._pages.take(num_blocks - held, session_id)
            table.pages = np.concatenate((table.pages, more))
        else:
            self._pages.give(table.pages[num_blocks:])
            table.pages = table.pages[:num_blocks].copy()
        return table.pages

    def attach(self, session_id: int) -> tuple[Int32, list[int]]:
        """(pages, tokens by layer) of an open session, for a worker that takes it over."""
        table = self._session(session_id).table
        return table.pages, list(table.num_tokens)

    def write(self, session_id: int, layer: int, start: int, keys: ArrayLike, values: ArrayLike) -> None:
        """Stores rows [T, Hkv, D] from token `start` on; they count once they are committed."""
        self._session(session_id).table.write(self.arena, layer, start, keys, values)

    def commit(self, session_id: int, layer: int, start: int, end: int) -> None:
        """Rows [start, end) of `layer` lie in the arena; what was stored after them is gone.

        Seals the blocks that are now full: builds their anchors.
        """
        session = self._session(session_id)
        size = self.layout.block_size
        session.table.check_rows(layer, start, end, size)
        self._cut(session, layer, start)
        session.table.num_tokens[layer] = end
        sealed, full = session.num_sealed[layer], end // size
        if full > sealed:
            self._anchors.build(layer, session.table.pages[sealed:full], sealed, session.rotation)
            session.num_sealed[layer] = full

    def append(self, session_id: int, layer: int, start: int, keys: ArrayLike, values: ArrayLike) -> None:
        """Writes and commits rows [T, Hkv, D]."""
        end = self._session(session_id).table.write(self.arena, layer, start, keys, values)
        self.commit(session_id, layer, start, end)

    def rebuild_anchors(self, session_id: int, layer: int, first: int, importance: Float32) -> None:
        """Makes the anchors of sealed blocks [first, first + n) from their most important keys.

        `importance` [n, Hkv, B] says how much attention each key received.
        """
        session = self._session(session_id)
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
        self._selector.forget(session_id, layer, first)

    def truncate(self, session_id: int, num_tokens: int) -> None:
        """Forgets the tokens after the first `num_tokens`; the pages stay reserved."""
        if num_tokens < 0:
            raise InvalidRequest(f"session {session_id}: truncate to {num_tokens} tokens; keep none or more")
        session = self._session(session_id)
        for layer, held in enumerate(session.table.num_tokens):
            if held > num_tokens:
                self._cut(session, layer, num_tokens)
                session.table.num_tokens[layer] = num_tokens
        # Codes follow the range of all anchors that were ever there; a shorter session must not remember them.
        self._selector.forget(session_id)

    def _cut(self, session: StoredSession, layer: int, num_tokens: int) -> None:
        full = num_tokens // self.layout.block_size
        if session.num_sealed[layer] > full:
            session.num_sealed[layer] = full
            session.kept.pop(layer, None)
            self._selector.forget(session.table.session_id, layer, full)

    def select(self, request: SelectRequest) -> SelectReply:
        """The best blocks of this shard alone; exact with several shards unless the pooling is SOFTMAX."""
        return self._selector.select(request, *self._candidates(request))

    def select_together(self, requests: Sequence[SelectRequest]) -> list[SelectReply]:
        """`select` for each of some sessions, at least one, in one call where it can be one."""
        return self._selector.select_together(
            [Asked(request, *self._candidates(request)) for request in requests]
        )

    def score(self, request: SelectRequest) -> Float32:
        """[R, Hq] log-sum-exp of this shard's logits; the session keeps them until `choose`."""
        scoring = self._selector.score(request, *self._candidates(request))
        self._session(request.session_id).scoring = scoring
        return self._selector.lse(scoring)

    def choose(self, session_id: int, lse: Float32) -> SelectReply:
        """Ends what `score` began; `lse` [R, Hq] is that of all shards together."""
        scoring = self._take_scoring(session_id, lse)
        reply = self._selector.choose(scoring, lse)
        self._selector.release(scoring)
        return reply

    def keep(self, session_id: int, layer: int, blocks: Int32, limit: int) -> None:
        """Restricts selections of `layer` with `use_preselected`: of the blocks before `limit`, to `blocks`."""
        session = self._session(session_id)
        session.table.pages_of(layer, blocks, self.layout.block_size)
        if len(blocks) > 1 and not (blocks[1:] > blocks[:-1]).all():
            raise InvalidRequest(f"session {session_id}: preselected blocks are not ascending; sort them")
        session.kept[layer] = Preselection(np.array(blocks, np.int32), limit)

    def gather(self, session_id: int, layer: int, blocks: Int32, out: Storage, slots: Int32) -> None:
        """Copies `blocks` of `layer` into `out[slots]`; out is [num_slots, 2, Hkv, B, D] of storage type."""
        arena, pages = self.locate(session_id, layer, blocks)
        gather_blocks(arena.kv[layer], pages, out, slots)

    def locate(self, session_id: int, layer: int, blocks: Int32) -> tuple[Arena, Int32]:
        """The arena and the pages of `blocks` in it."""
        table = self._session(session_id).table
        return self.arena, table.pages_of(layer, blocks, self.layout.block_size)

    def pages(self, session_id: int) -> tuple[Arena, Int32]:
        """The arena and all pages of a session in it."""
        return self.arena, self._session(session_id).table.pages

    def drop(self, session_id: int) -> None:
        """Frees a session's pages. Idempotent."""
        session = self._sessions.pop(session_id, None)
        if session is not None:
            self._pages.give(session.table.pages)
            self._selector.forget(session_id)

    def stats(self) -> StoreStats:
        """Counts and bytes."""
        held = self._pages.num_pages - self._pages.num_free
        return StoreStats(
            num_pages=self._pages.num_pages,
            free_pages=self._pages.num_free,
            num_sessions=len(self._sessions),
            num_sealed=sum(min(session.num_sealed) for session in self._sessions.values()),
            used_bytes=held * self.layout.page_bytes,
            capacity_bytes=self.arena.num_bytes,
            anchor_bytes=self._pages.num_pages * self.layout.page_anchor_bytes,
        )

    def check_integrity(self) -> None:
        """Raises RuntimeError if the free list, the page tables and the sealed counts disagree."""
        tables = [session.table for session in self._sessions.values()]
        held = np.concatenate([np.empty(0, np.int32), *(table.pages for table in tables)])
        if len(np.unique(held)) != len(held):
            raise RuntimeError("KV store: two sessions hold the same page")
        is_free = self._pages.is_free
        if is_free[held].any() or np.count_nonzero(is_free) != self._pages.num_free:
            raise RuntimeError("KV store: a held page is on the free list")
        if len(held) + self._pages.num_free != self._pages.num_pages:
            raise RuntimeError("KV store: a page is neither held nor free")
        for session in self._sessions.values():
            self._check_session(session)

    def _check_session(self, session: StoredSession) -> None:
        table, size = session.table, self.layout.block_size
        for layer, (tokens, sealed) in enumerate(zip(table.num_tokens, session.num_sealed, strict=True)):
            if not (sealed <= tokens // size and tokens <= len(table.pages) * size):
                raise RuntimeError(
                    f"KV store: session {table.session_id}, layer {layer}: {sealed} sealed blocks, "
                    f"{tokens} tokens and {len(table.pages)} pages disagree"
                )

    def close(self) -> None:
        """Forgets all sessions and gives the memory back. Idempotent."""
        self._sessions.clear()
        self.arena.close()

    def _candidates(self, request: SelectRequest) -> tuple[Int32, int, Preselection | None]:
        """(pages, sealed blocks, preselected blocks or None) of what `request` is about."""
        session = self._session(request.session_id)
        session.table.check_layer(request.layer)
        kept = session.kept.get(request.layer) if request.use_preselected else None
        return session.table.pages, session.num_sealed[request.layer], kept

    def _take_scoring(self, session_id: int, lse: Float32) -> Scoring:
        session = self._session(session_id)
        scoring, session.scoring = session.scoring, None
        if scoring is None or lse.shape != scoring.logits.shape[:2]:
            raise InvalidRequest(f"session {session_id}: no scored request fits lse {lse.shape}; score first")
        return scoring

    def _session(self, session_id: int) -> StoredSession:
        session = self._sessions.get(session_id)
        if session is None:
            raise NotFound(f"session {session_id} is not in this KV store; open it first")
        return session
