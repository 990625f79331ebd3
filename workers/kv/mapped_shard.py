"""One shard as a process that maps its arena sees it: the sessions' blocks, and selections over their anchors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from moorage.workers.errors import InvalidRequest, MoorageError, NotFound
from moorage.workers.kv.anchors import AnchorBuilder
from moorage.workers.kv.arena import Arena
from moorage.workers.kv.block_scorer import BlockScorer
from moorage.workers.kv.block_table import BlockTable
from moorage.workers.kv.candidates import Asked, Preselection
from moorage.workers.kv.formats import format_of
from moorage.workers.kv.key_scorer import KeyScorer
from moorage.workers.kv.messages import (
    AnchorRotation,
    Attached,
    Float32,
    Int32,
    KeyReply,
    KeyRequest,
    KeyRowsReply,
    KeyRowsRequest,
    RawPages,
    SelectReply,
    SelectRequest,
    Storage,
)
from moorage.workers.kv.packed_rows import PackedRows
from moorage.workers.kv.shard_session import ShardSession


class MappedShard:
    """The sessions of one arena. Token positions and block ids are those of this shard alone.

    The store owns one. A worker of the same host has one of its own, which follows what it asks of the store.
    Selections are the same in both. Codes of anchors lie in the arena, so only one of them may select.
    """

    def __init__(self, arena: Arena, where: str) -> None:
        """`where` says in messages what a session that is missing should be in."""
        self.arena, self.layout = arena, arena.layout
        self.sessions: dict[int, ShardSession] = {}
        self.unconfirmed: set[int] = set()
        """Sessions in a worker of which the store may not have sealed yet what counts as sealed here."""
        self.anchors = AnchorBuilder(arena)
        self.packed = None if arena.codec is None else PackedRows(arena, arena.codec, self.anchors)
        """How rows and blocks pass where blocks are packed."""
        self._scorer, self._keys = BlockScorer(arena), KeyScorer(arena, self.packed)
        self._where = where
        self._last_version = 0

    @property
    def is_readable(self) -> bool:
        """Whether kernels and copies may read blocks where they lie; otherwise `gather` decodes them."""
        return self.packed is None

    def session(self, session_id: int) -> ShardSession:
        """Raises NotFound for a session that is not open."""
        session = self.sessions.get(session_id)
        if session is None:
            raise NotFound(f"session {session_id} is not {self._where}")
        return session

    def open(
        self,
        session_id: int,
        pages: Int32,
        num_tokens: Sequence[int] | None = None,
        num_sealed: Sequence[int] | None = None,
        rotation: AnchorRotation | None = None,
        open_pages: Int32 | None = None,
        sink_pages: Int32 | None = None,
    ) -> None:
        """Records a session with its pages, and by layer its tokens and sealed blocks, none by default."""
        none = (0,) * self.layout.num_layers
        raw = RawPages(block=[-1] * self.layout.num_layers)
        raw.open_pages = raw.open_pages if open_pages is None else open_pages
        raw.sink_pages = raw.sink_pages if sink_pages is None else sink_pages
        table = BlockTable(session_id, pages, list(num_tokens or none), raw)
        session = ShardSession(table, list(num_sealed or none), rotation=rotation)
        self.sessions[session_id] = session
        self._scorer.invalidate(session_id)
        self._change(session)

    def follow_open(self, session_id: int, opened: Attached) -> None:
        """`open` of a session as the store has it."""
        counts = opened.num_tokens.tolist(), opened.num_sealed.tolist()
        self.open(session_id, opened.pages, *counts, opened.rotation, opened.open_pages, opened.sink_pages)

    def drop(self, session_id: int) -> ShardSession | None:
        """Removes a session; returns it if it was open."""
        session = self.sessions.pop(session_id, None)
        self.unconfirmed.discard(session_id)
        if session is not None:
            self._scorer.invalidate(session_id)
        return session

    def write(self, session_id: int, layer: int, start: int, keys: ArrayLike, values: ArrayLike) -> int:
        """Stores rows [T, Hkv, D] from token `start` on; returns the token after the last.

        Rows count once they are committed.
        """
        session = self.session(session_id)
        if self.packed is not None:
            return self.packed.write(session, layer, start, keys, values)
        return session.table.write(self.arena, layer, start, keys, values)

    def commit(self, session_id: int, layer: int, start: int, end: int) -> range:
        """Records that rows [start, end) of `layer` are complete; returns the blocks that are full and not sealed.

        What was stored after these rows is gone.
        """
        session, size = self.session(session_id), self.layout.block_size
        session.table.check_rows(layer, start, end, size)
        self._cut(session, layer, start)
        session.table.num_tokens[layer] = end
        if end > start:
            session.table.raw.block[layer] = (end - 1) // size
        return range(session.num_sealed[layer], end // size)

    def extend(self, session_id: int, position: int) -> bool:
        """Records that the row at `position` is complete in all layers, if it neither fills nor replaces a block.

        False where it does; then nothing has changed, and `commit` is to be asked for each layer.
        """
        session, size = self.session(session_id), self.layout.block_size
        table, end = session.table, position + 1
        table.check_row(position, size)
        if end % size == 0 or max(table.num_tokens) > end or max(session.num_sealed) > position // size:
            return False
        table.num_tokens = [end] * self.layout.num_layers
        table.raw.block = [position // size] * self.layout.num_layers
        return True

    def follow_commit(
        self, session_id: int, layer: int, start: int, end: int, is_sealed: bool = False
    ) -> None:
        """`commit` and `seal`, as the store does both later; what it refuses it will tell."""
        try:
            full = self.commit(session_id, layer, start, end)
        except MoorageError:
            return
        if full:
            self.seal(session_id, layer, full.stop)
            if not is_sealed:
                self.unconfirmed.add(session_id)

    def follow_row(self, session_id: int, position: int) -> None:
        """`follow_commit` of the row at `position` in all layers."""
        try:
            if self.extend(session_id, position):
                return
        except MoorageError:
            return
        for layer in range(self.layout.num_layers):
            self.follow_commit(session_id, layer, position, position + 1)

    def seal(self, session_id: int, layer: int, num_blocks: int) -> None:
        """Records that the first `num_blocks` blocks of `layer` have their anchors."""
        session = self.session(session_id)
        session.num_sealed[layer] = num_blocks
        self._change(session)

    def truncate(self, session_id: int, num_tokens: int) -> None:
        """Removes the tokens after the first `num_tokens`; the pages stay.

        Raises InvalidRequest where the rows that are left of a packed block are gone; then nothing has changed.
        """
        session = self.session(session_id)
        cut = [layer for layer, held in enumerate(session.table.num_tokens) if held > num_tokens]
        if self.packed is not None:
            for layer in cut:
                self.packed.check_open(session.table, layer, num_tokens)
        for layer, held in enumerate(session.table.num_tokens):
            if held > num_tokens:
                self._cut(session, layer, num_tokens)
                session.table.num_tokens[layer] = num_tokens
        self._change(session)

    def restore(self, session_id: int, num_blocks: int, num_rest: int = 0) -> None:
        """Records that the first blocks of a new session are full and have anchors, and that the next one has
        `num_rest` tokens; someone puts them there."""
        session, count = self.session(session_id), self.layout.num_layers
        session.table.num_tokens = [num_blocks * self.layout.block_size + num_rest] * count
        session.num_sealed = [num_blocks] * count
        self._change(session)

    def follow_reseal(self, session_id: int, layer: int, num_tokens: int) -> None:
        """Anchors of `layer` change in the store."""
        del num_tokens
        self.invalidate(session_id, layer)
        self.unconfirmed.add(session_id)

    def invalidate(self, session_id: int, layer: int) -> None:
        """Anchors of `layer` have changed."""
        self._scorer.invalidate(session_id, layer)
        self._change(self.session(session_id))

    def _change(self, session: ShardSession) -> None:
        self._last_version += 1
        session.version = self._last_version

    def close_block(self, session_id: int, layer: int) -> None:
        """The session goes on in another shard: its open block here is full, and is read as it is packed."""
        self.session(session_id).table.raw.block[layer] = -1

    def _cut(self, session: ShardSession, layer: int, num_tokens: int) -> None:
        full, rest = divmod(num_tokens, self.layout.block_size)
        if not rest:
            session.table.raw.block[layer] = -1
        if session.num_sealed[layer] > full:
            session.num_sealed[layer] = full
            session.preselections.pop(layer, None)
            self.invalidate(session.table.session_id, layer)

    def gather(self, session_id: int, layer: int, blocks: Int32, out: Storage, slots: Int32) -> None:
        """Copies `blocks` of `layer` into `out[slots]`; out is [num_slots, 2, Hkv, B, D] of storage type."""
        if self.packed is not None:
            self.packed.gather(self.session(session_id), layer, blocks, out, slots)
        else:
            self.arena.decode(layer, self.pages_of(session_id, layer, blocks), out, slots)

    def copy_blocks(self, session_id: int, layer: int, blocks: Int32) -> Storage:
        """Copies of `blocks`, [n, 2, Hkv, B, D] of storage type."""
        copies: Storage = np.empty(
            (len(blocks), 2, *self.layout.block_shape), format_of(self.layout.kv_type).storage
        )
        self.gather(session_id, layer, blocks, copies, np.arange(len(blocks), dtype=np.int32))
        return copies

    def pages_of(self, session_id: int, layer: int, blocks: Int32) -> Int32:
        """The pages of written `blocks` in the arena."""
        return self.session(session_id).table.pages_of(layer, blocks, self.layout.block_size)

    def select(self, request: SelectRequest) -> SelectReply:
        """The best blocks of this shard alone; exact with several shards unless the pooling is SOFTMAX."""
        return self._scorer.select(self._asked(request))

    def select_together(self, requests: Sequence[SelectRequest]) -> list[SelectReply]:
        """`select` for each of some sessions, at least one, in one call where it can be one."""
        return self._scorer.select_together([self._asked(request) for request in requests])

    def score(self, request: SelectRequest) -> Float32:
        """[R, Hq] log-sum-exp of this shard's logits; the session keeps them until `select_scored`."""
        scoring = self._scorer.score(self._asked(request))
        self.session(request.session_id).scoring = scoring
        return self._scorer.lse(scoring)

    def select_scored(self, session_id: int, lse: Float32) -> SelectReply:
        """Ends what `score` began; `lse` [R, Hq] is that of all shards together."""
        session = self.session(session_id)
        scoring, session.scoring = session.scoring, None
        if scoring is None or lse.shape != scoring.logits.shape[:2]:
            raise InvalidRequest(f"session {session_id}: no scored request fits lse {lse.shape}; score first")
        reply = self._scorer.select_scored(scoring, lse)
        self._scorer.release(scoring)
        return reply

    def select_keys(self, requests: Sequence[KeyRequest]) -> list[KeyReply]:
        """See SelectKeys."""
        return [self._keys.select(one, self.session(one.session_id)) for one in requests]

    def key_rows(self, wanted: Sequence[KeyRowsRequest]) -> list[KeyRowsReply]:
        """See KeyRows."""
        return [self._keys.rows(one, self.session(one.request.session_id)) for one in wanted]

    def preselect(self, session_id: int, layer: int, blocks: Int32, limit: int) -> None:
        """Restricts selections of `layer` with `use_preselected`: of the blocks before `limit`, to `blocks`."""
        self.pages_of(session_id, layer, blocks)
        if len(blocks) > 1 and not (blocks[1:] > blocks[:-1]).all():
            raise InvalidRequest(f"session {session_id}: preselected blocks are not ascending; sort them")
        self.session(session_id).preselections[layer] = Preselection(np.array(blocks, np.int32), limit)

    def _asked(self, request: SelectRequest) -> Asked:
        session = self.session(request.session_id)
        session.table.check_layer(request.layer)
        preselection = session.preselections.get(request.layer) if request.use_preselected else None
        return Asked(request, session.table.pages, session.num_sealed[request.layer], preselection)

    def close(self) -> None:
        """Removes all sessions and unmaps the arena. Idempotent."""
        self.sessions.clear()
        self.arena.close()
