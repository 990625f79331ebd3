"""The worker's end of the mailbox: rows and blocks through the mapped arena, requests through the window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike

from moorage.workers.errors import InvalidRequest, MoorageError, PeerDead
from moorage.workers.kv.arena import Arena
from moorage.workers.kv.mailbox_channel import Channel, Patience
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
from moorage.workers.kv.window import span
from moorage.workers.kv.wire import MAX_TOGETHER, REPLY, REPLY_WANTED, STATS, Op, Request, pack_flags

T = TypeVar("T")
_NO_BLOCKS = np.empty(0, np.int32)


class MailboxLink:
    """A `Link` to a MailboxServer of the same host.

    `write` puts rows into the arena itself and `commit` sends one packet without waiting; `gather` reads the
    arena without asking anyone. A session that this link opened is written by this link alone, until it is
    dropped. A dead server shows at once as PeerDead, and one that is silent for longer than `patience` allows.
    """

    def __init__(self, address: str, *, patience: Patience | None = None, name: str = "") -> None:
        """Connects. Raises PeerDead when nobody serves `address`. `name` is the server's, for messages."""
        self._channel = Channel(address, patience or Patience(), name)
        self._arena, self.layout = self._channel.arena, self._channel.arena.layout
        self.pid = self._channel.pid
        self.shard = MappedShard(self._arena, "open on this link; open it first or attach to it")
        self.scores_here = False
        self._unconfirmed: set[int] = set()
        """Sessions with commits, since the last reply, that changed which blocks are sealed."""
        self._scored: dict[int, SelectRequest] = {}

    def open(self, session_id: int, num_blocks: int, rotation: AnchorRotation | None = None) -> None:
        """As `KvStore.open`."""
        request = Request(Op.OPEN, session_id=session_id, end=num_blocks)
        room = span(self._arena.num_pages)
        if rotation is not None:
            angles = len(rotation.inv_freq)
            room = max(room, span(2 * angles))
            self._channel.reserve(room)
            self._channel.window.floats(0, 2 * angles).view(np.float64)[:] = rotation.inv_freq
            request = request._replace(
                start=angles,
                num_rows=rotation.shard,
                num_heads=rotation.num_shards,
                k=rotation.stripe_blocks,
            )
        count = self._channel.call(request, room)
        pages = self._channel.window.ints(0, count).copy()
        self.shard.open(session_id, pages)

    def resize(self, session_id: int, num_blocks: int) -> None:
        """As `KvStore.resize`."""
        table = self.shard.session(session_id).table
        room = span(self._arena.num_pages)
        count = self._channel.call(Request(Op.RESIZE, session_id=session_id, end=num_blocks), room)
        table.pages = self._channel.window.ints(0, count).copy()

    def attach(self, session_id: int) -> int:
        """As `KvStore.attach`; returns the tokens that every layer holds."""
        layers = self.layout.num_layers
        room = span(self._arena.num_pages) + span(layers)
        count = self._channel.call(Request(Op.ATTACH, session_id=session_id), room)
        pages = self._channel.window.ints(0, count).copy()
        num_tokens: list[int] = self._channel.window.ints(span(count), layers).tolist()
        num_sealed = [held // self.layout.block_size for held in num_tokens]
        self.shard.open(session_id, pages, num_tokens, num_sealed)
        return min(num_tokens)

    def write(self, session_id: int, layer: int, start: int, keys: ArrayLike, values: ArrayLike) -> None:
        """As `KvStore.write`, straight into the arena."""
        self.shard.write(session_id, layer, start, keys, values)

    def commit(self, session_id: int, layer: int, start: int, end: int) -> None:
        """As `KvStore.commit`, without waiting; its error comes with the session's next reply."""
        self._channel.post(Request(Op.COMMIT, layer=layer, session_id=session_id, start=start, end=end))

        self._follow_commit(session_id, layer, start, end)

    def commit_rows(self, rows: Sequence[tuple[int, int]]) -> dict[int, MoorageError]:
        """As `Link.commit_rows`, without waiting unless blocks are sealed."""
        waits = sum(self._follow_row(session_id, position) for session_id, position in rows) > 0
        failed: dict[int, MoorageError] = {}
        for start in range(0, len(rows), MAX_TOGETHER):
            part = rows[start : start + MAX_TOGETHER]
            requests = [
                Request(Op.COMMIT_ROW, REPLY_WANTED * waits, session_id=session_id, start=position)
                for session_id, position in part
            ]
            if not waits:
                self._channel.post(*requests)
                continue
            self._channel.reserve(0)
            self._channel.send(*requests)
            count = self._channel.receive()
            failed |= self._failures(
                np.frombuffer(self._channel.packet, np.int64, count, REPLY.size).tolist()
            )
        if waits:
            self._unconfirmed.difference_update(session_id for session_id, _ in rows)
        return failed

    def confirm(self, session_id: int) -> None:
        """As `Link.confirm`."""
        if session_id in self._unconfirmed:
            self._unconfirmed.discard(session_id)
            self._channel.call(Request(Op.CONFIRM, session_id=session_id), 0)

    def _follow_row(self, session_id: int, position: int) -> bool:
        """As `_follow_commit`, in all layers; whether the row fills or replaces a block."""
        with suppress(MoorageError):
            if self.shard.extend(session_id, position):
                return False
        for layer in range(self.layout.num_layers):
            self._follow_commit(session_id, layer, position, position + 1)
        return True

    def _follow_commit(self, session_id: int, layer: int, start: int, end: int) -> None:
        """Records a commit here as the store will; one that it refuses is refused there, and told later."""
        try:
            full = self.shard.commit(session_id, layer, start, end)
        except MoorageError:
            return
        if full:
            self.shard.seal(session_id, layer, full.stop)
            self._unconfirmed.add(session_id)

    def _failures(self, session_ids: Sequence[int]) -> dict[int, MoorageError]:
        """Why the commits of each of some sessions failed."""
        failed: dict[int, MoorageError] = {}
        for session_id in session_ids:
            try:
                self._channel.call(Request(Op.CONFIRM, session_id=session_id), 0)
            except PeerDead:
                raise
            except MoorageError as error:
                failed[session_id] = error
        return failed

    def truncate(self, session_id: int, num_tokens: int) -> None:
        """As `KvStore.truncate`."""
        self.shard.session(session_id)
        self._channel.call(Request(Op.TRUNCATE, session_id=session_id, end=num_tokens), 0)
        self.shard.truncate(session_id, num_tokens)

    def submit_select(self, request: SelectRequest) -> Callable[[], SelectReply]:
        """As `KvStore.select`."""
        if self.scores_here:
            return self._here(self.shard.select, request)
        offset = self._submit_queries(Op.SELECT, request)
        return lambda: self._collect_choice(offset, request)

    def submit_together(self, requests: Sequence[SelectRequest]) -> Callable[[], list[SelectReply]]:
        """As `KvStore.select_together`."""
        if self.scores_here:
            for request in requests:
                self.confirm(request.session_id)
            replies = self.shard.select_together(requests)
            return lambda: replies
        groups = [requests[i : i + MAX_TOGETHER] for i in range(0, len(requests), MAX_TOGETHER)]
        done = [reply for group in groups[:-1] for reply in self._submit_group(group)()]
        collect = self._submit_group(groups[-1])
        return lambda: [*done, *collect()]

    def submit_score(self, request: SelectRequest) -> Callable[[], Float32]:
        """As `KvStore.score`."""
        if self.scores_here:
            return self._here(self.shard.score, request)
        offset = self._submit_queries(Op.SCORE, request)
        self._scored[request.session_id] = request

        def collect() -> Float32:
            self._channel.receive()
            return self._channel.window.floats(offset, *request.queries.shape[:2]).copy()

        return collect

    def submit_choose(self, session_id: int, lse: Float32) -> Callable[[], SelectReply]:
        """As `KvStore.choose`."""
        if self.scores_here:
            reply = self.shard.choose(session_id, lse)
            return lambda: reply
        request = self._scored_request(session_id)
        offset = self._submit_lse(Op.CHOOSE, session_id, lse, self._choice_bytes(request))
        return lambda: self._collect_choice(offset, request)

    def keep(self, session_id: int, layer: int, blocks: Int32, limit: int) -> None:
        """As `KvStore.keep`."""
        if self.scores_here:
            self.shard.preselect(session_id, layer, blocks, limit)
            return
        self._channel.reserve(span(len(blocks)))
        self._channel.window.ints(0, len(blocks))[:] = blocks
        request = Request(Op.KEEP, layer=layer, session_id=session_id, start=limit, end=len(blocks))
        self._channel.call(request, 0)

    def rebuild_anchors(self, session_id: int, layer: int, first: int, importance: Float32) -> None:
        """As `KvStore.rebuild_anchors`."""
        shape = importance.shape
        self._channel.reserve(span(*shape))
        self._channel.window.floats(0, *shape)[:] = importance
        request = Request(
            Op.REBUILD_ANCHORS, layer=layer, session_id=session_id, start=first, num_rows=shape[0]
        )
        self._channel.call(request, 0)
        self.shard.invalidate(session_id, layer, first)

    def gather(self, session_id: int, layer: int, blocks: Int32, out: Storage, slots: Int32) -> None:
        """As `KvStore.gather`, straight from the arena."""
        self.shard.gather(session_id, layer, blocks, out, slots)

    def locate(self, session_id: int, layer: int, blocks: Int32) -> tuple[Arena, Int32]:
        """As `KvStore.locate`; the arena is the store's own memory, mapped."""
        return self._arena, self.shard.pages_of(session_id, layer, blocks)

    def pages(self, session_id: int) -> tuple[Arena, Int32]:
        """As `KvStore.pages`."""
        return self._arena, self.shard.session(session_id).table.pages

    def arena(self) -> Arena:
        """As `KvStore.arena`, mapped."""
        return self._arena

    def drop(self, session_id: int) -> None:
        """As `KvStore.drop`."""
        self.shard.drop(session_id)
        self._unconfirmed.discard(session_id)
        self._scored.pop(session_id, None)
        self._channel.call(Request(Op.DROP, session_id=session_id), 0)

    def stats(self) -> StoreStats:
        """As `KvStore.stats`."""
        self._channel.call(Request(Op.STATS), 0)
        return StoreStats(*STATS.unpack_from(self._channel.packet, REPLY.size))

    def close(self) -> None:
        """Ends the connection and unmaps the arena; the sessions stay. Idempotent."""
        self._channel.close()
        self.shard.sessions.clear()

    def _here(self, ask: Callable[[SelectRequest], T], request: SelectRequest) -> Callable[[], T]:
        """Asks this process's own scorer, once the store has sealed what was committed."""
        self.confirm(request.session_id)
        answer = ask(request)
        return lambda: answer

    def _submit_queries(self, op: Op, request: SelectRequest) -> int:
        """Sends `request`; returns the offset of the answer in the window."""
        self._channel.reserve(self._bytes_of(request))
        header = self._put_queries(op, request, 0)
        self._channel.send(header)
        return header.reply_offset

    def _submit_group(self, requests: Sequence[SelectRequest]) -> Callable[[], list[SelectReply]]:
        """Sends what fits one packet."""
        self._channel.reserve(sum(map(self._bytes_of, requests)))
        headers, begin = [], 0
        for request in requests:
            headers.append(self._put_queries(Op.SELECT, request, begin))
            begin = headers[-1].window_bytes
        self._channel.send(*headers)

        def collect() -> list[SelectReply]:
            self._channel.receive()
            return [
                self._choice_at(header.reply_offset, request)
                for header, request in zip(headers, requests, strict=True)
            ]

        return collect

    def _bytes_of(self, request: SelectRequest) -> int:
        """Bytes in the window of a request's arrays and its answer."""
        rows, heads, dim = request.queries.shape
        refined = 0 if request.refine is None else len(request.refine)
        answer = max(self._choice_bytes(request), span(rows, heads))
        return span(rows, heads, dim) + span(rows) + span(refined) + answer

    def _put_queries(self, op: Op, request: SelectRequest, begin: int) -> Request:
        """Writes a request's arrays from `begin` of the window on; returns its header."""
        rows, heads, dim = request.queries.shape
        refine = _NO_BLOCKS if request.refine is None else request.refine
        limits_offset = begin + span(rows, heads, dim)
        refine_offset = limits_offset + span(rows)
        self._channel.window.floats(begin, rows, heads, dim)[:] = request.queries
        self._channel.window.ints(limits_offset, rows)[:] = request.limits
        self._channel.window.ints(refine_offset, len(refine))[:] = refine
        return Request(
            op,
            pack_flags(request),
            request.layer,
            request.session_id,
            request.first,
            begin,
            rows,
            heads,
            request.k,
            len(refine),
            request.scale,
            refine_offset + span(len(refine)),
            begin + self._bytes_of(request),
        )

    def _submit_lse(self, op: Op, session_id: int, lse: Float32, room: int) -> int:
        rows, heads = lse.shape
        offset = span(rows, heads)
        self._channel.reserve(offset + room)
        self._channel.window.floats(0, rows, heads)[:] = lse
        self._channel.send(
            Request(
                op,
                session_id=session_id,
                num_rows=rows,
                num_heads=heads,
                reply_offset=offset,
                window_bytes=offset + room,
            )
        )
        return offset

    def _choice_bytes(self, request: SelectRequest) -> int:
        return 2 * span(*self._choice_shape(request))

    def _choice_shape(self, request: SelectRequest) -> tuple[int, int, int]:
        return len(request.queries), request.num_choices(self.layout.num_kv_heads), request.k

    def _collect_choice(self, offset: int, request: SelectRequest) -> SelectReply:
        self._channel.receive()
        return self._choice_at(offset, request)

    def _choice_at(self, offset: int, request: SelectRequest) -> SelectReply:
        shape = self._choice_shape(request)
        ids = self._channel.window.ints(offset, *shape).copy()
        return SelectReply(ids, self._channel.window.floats(offset + span(*shape), *shape).copy())

    def _scored_request(self, session_id: int) -> SelectRequest:
        request = self._scored.get(session_id)
        if request is None:
            raise InvalidRequest(f"session {session_id}: nothing is scored; score first")
        return request
