"""What the mailbox server does for one worker: takes a packet, asks the store, answers."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import astuple

import numpy as np

from moorage.workers.errors import InvalidRequest, MoorageError
from moorage.workers.kv.messages import AnchorRotation, Int32, SelectReply, SelectRequest
from moorage.workers.kv.store import KvStore
from moorage.workers.kv.window import Window, span
from moorage.workers.kv.wire import (
    MAX_PACKET_BYTES,
    REPLY,
    REPLY_WANTED,
    REQUEST,
    STATS,
    Op,
    Request,
    pack_error,
    unpack_request,
)

_log = logging.getLogger(__name__)
_DONE = REPLY.pack(0, 0)


class Connection:
    """One worker's connection."""

    def __init__(self, sock: socket.socket, store: KvStore) -> None:
        self._sock, self._store = sock, store
        self._window: Window | None = None
        self._failures: dict[int, MoorageError] = {}

    def serve(self) -> bool:
        """Takes one packet; False when the worker is gone or breaks the protocol."""
        if self._window is None:
            return self._take_window()
        packet = self._sock.recv(MAX_PACKET_BYTES)
        if not packet or len(packet) % REQUEST.size:
            return False
        request, *more = map(Request._make, REQUEST.iter_unpack(packet))
        if request.op == Op.COMMIT:
            self._record(request, self._store.commit, request.layer, request.start, request.end)
            return not more
        if request.op == Op.COMMIT_ROW:
            self._commit_rows((request, *more))
            return True
        # A worker waits for each reply before it asks again, so a full socket means a broken worker.
        reply = self._answer_together((request, *more)) if more else self._answer(request)
        self._sock.send(reply, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        return True

    def close(self) -> None:
        """Closes the socket and the window."""
        self._sock.close()
        if self._window is not None:
            self._window.close()

    def _take_window(self) -> bool:
        _, fds, _, _ = socket.recv_fds(self._sock, 1, 1)
        if len(fds) != 1:
            return False
        try:
            self._window = Window(fds[0])
        except InvalidRequest:
            os.close(fds[0])
            return False
        return True

    def _record(self, request: Request, act: Callable[..., None], *what: int) -> None:
        """Does what has no reply; an error is kept for the next reply for its session."""
        try:
            act(request.session_id, *what)
        except MoorageError as error:
            self._failures.setdefault(request.session_id, error)
        except Exception as error:  # noqa: BLE001 - as for requests that are answered
            self._failures.setdefault(request.session_id, _unexpected(error, request))

    def _commit_rows(self, requests: Sequence[Request]) -> None:
        for request in requests:
            self._record(request, self._store.commit_row, request.start)
        if requests[0].flags & REPLY_WANTED:
            failed = [each.session_id for each in requests if each.session_id in self._failures]
            reply = REPLY.pack(0, len(failed)) + np.array(failed, np.int64).tobytes()
            self._sock.send(reply, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    def _answer(self, request: Request) -> bytes:
        failure = self._failures.pop(request.session_id, None)
        if failure is not None and request.op != Op.DROP:
            return pack_error(failure)

        def handle(window: Window) -> bytes:
            handler = _HANDLERS.get(request.op)
            if handler is None:
                raise InvalidRequest(
                    f"mailbox: unknown operation {request.op}; use one version on both sides"
                )
            return handler(self, request, window)

        return self._guarded(handle, request)

    def _answer_together(self, requests: Sequence[Request]) -> bytes:
        """The one reply to several SELECT. A session's failed COMMIT stays to be told in answer to itself alone."""
        for request in requests:
            if request.session_id in self._failures:
                return pack_error(self._failures[request.session_id])

        def handle(window: Window) -> bytes:
            if any(request.op != Op.SELECT for request in requests):
                raise InvalidRequest(
                    "mailbox: only SELECT can be asked together; use one version on both sides"
                )
            replies = self._store.select_together([self._request_of(each, window) for each in requests])
            for request, reply in zip(requests, replies, strict=True):
                _put_reply(request, window, reply)
            return REPLY.pack(0, len(replies))

        return self._guarded(handle, requests[-1])

    def _guarded(self, handle: Callable[[Window], bytes], request: Request) -> bytes:
        """What `handle` answers once the window is as large as `request` says, or its error."""
        assert self._window is not None
        try:
            self._window.follow(request.window_bytes)
            return handle(self._window)
        except MoorageError as error:
            return pack_error(error)
        except Exception as error:  # noqa: BLE001 - one request must not end the actor for all workers
            return pack_error(_unexpected(error, request))

    def _open(self, request: Request, window: Window) -> bytes:
        rotation = None
        if request.start:
            angles = window.floats(0, 2 * request.start).view(np.float64).copy()
            rotation = AnchorRotation(angles, request.num_rows, request.num_heads, request.k)
        return _put_pages(request, window, self._store.open(request.session_id, request.end, rotation))

    def _resize(self, request: Request, window: Window) -> bytes:
        return _put_pages(request, window, self._store.resize(request.session_id, request.end))

    def _attach(self, request: Request, window: Window) -> bytes:
        pages, num_tokens = self._store.attach(request.session_id)
        window.ints(request.reply_offset + span(len(pages)), len(num_tokens))[:] = num_tokens
        return _put_pages(request, window, pages)

    def _truncate(self, request: Request, _: Window) -> bytes:
        self._store.truncate(request.session_id, request.end)
        return _DONE

    def _select(self, request: Request, window: Window) -> bytes:
        return _put_reply(request, window, self._store.select(self._request_of(request, window)))

    def _score(self, request: Request, window: Window) -> bytes:
        lse = self._store.score(self._request_of(request, window))
        window.floats(request.reply_offset, *lse.shape)[:] = lse
        return _DONE

    def _choose(self, request: Request, window: Window) -> bytes:
        lse = window.floats(0, request.num_rows, request.num_heads)
        return _put_reply(request, window, self._store.choose(request.session_id, lse))

    def _keep(self, request: Request, window: Window) -> bytes:
        blocks = window.ints(0, request.end).copy()
        self._store.keep(request.session_id, request.layer, blocks, request.start)
        return _DONE

    def _rebuild_anchors(self, request: Request, window: Window) -> bytes:
        layout = self._store.layout
        importance = window.floats(0, request.num_rows, layout.num_kv_heads, layout.block_size)
        self._store.rebuild_anchors(request.session_id, request.layer, request.start, importance)
        return _DONE

    def _confirm(self, _request: Request, _window: Window) -> bytes:
        return _DONE

    def _drop(self, request: Request, _: Window) -> bytes:
        self._store.drop(request.session_id)
        return _DONE

    def _stats(self, _request: Request, _window: Window) -> bytes:
        return _DONE + STATS.pack(*astuple(self._store.stats()))

    def _request_of(self, request: Request, window: Window) -> SelectRequest:
        rows, heads, dim = request.num_rows, request.num_heads, self._store.layout.head_dim
        limits_offset = request.end + span(rows, heads, dim)
        return unpack_request(
            request,
            window.floats(request.end, rows, heads, dim),
            window.ints(limits_offset, rows),
            window.ints(limits_offset + span(rows), request.num_refined),
        )


_HANDLERS: dict[int, Callable[[Connection, Request, Window], bytes]] = {
    Op.OPEN: Connection._open,
    Op.RESIZE: Connection._resize,
    Op.ATTACH: Connection._attach,
    Op.TRUNCATE: Connection._truncate,
    Op.SELECT: Connection._select,
    Op.SCORE: Connection._score,
    Op.CHOOSE: Connection._choose,
    Op.KEEP: Connection._keep,
    Op.DROP: Connection._drop,
    Op.STATS: Connection._stats,
    Op.REBUILD_ANCHORS: Connection._rebuild_anchors,
    Op.CONFIRM: Connection._confirm,
}


def _put_pages(request: Request, window: Window, pages: Int32) -> bytes:
    window.ints(request.reply_offset, len(pages))[:] = pages
    return REPLY.pack(0, len(pages))


def _put_reply(request: Request, window: Window, reply: SelectReply) -> bytes:
    shape = reply.ids.shape
    window.ints(request.reply_offset, *shape)[:] = reply.ids
    window.floats(request.reply_offset + span(*shape), *shape)[:] = reply.scores
    return REPLY.pack(0, shape[1])


def _unexpected(error: Exception, request: Request) -> MoorageError:
    """Logs what nobody foresaw with its traceback; returns what the worker is told."""
    _log.error("mailbox request %s failed", request, exc_info=error)
    return MoorageError(f"KV actor: {type(error).__name__}: {error}; see the actor's log")
