"""The actor's end of the mailbox: one thread that serves many workers of the same host."""

from __future__ import annotations

import logging
import os
import secrets
import selectors
import socket
import struct
import threading
from collections.abc import Callable

import numba
import numpy as np

from moorage.workers.errors import InvalidRequest, MoorageError
from moorage.workers.kv.messages import AnchorRotation, Int32, SelectReply, SelectRequest
from moorage.workers.kv.store import KvStore
from moorage.workers.kv.window import Window, span
from moorage.workers.kv.wire import (
    MAX_PACKET_BYTES,
    REPLY,
    REQUEST,
    STATS,
    Hello,
    Op,
    Request,
    pack_error,
    unpack_request,
)

_log = logging.getLogger(__name__)
_DONE = REPLY.pack(0, 0)
_PEER_CREDENTIALS = struct.Struct("3i")


class MailboxServer:
    """Serves `store` on an abstract Unix socket with a name that can't be guessed, to the same user only.

    One thread owns the store while it answers, under `lock`; others who use the store take the same lock. A
    worker that dies loses its connection and nothing else: its sessions stay until they are dropped.
    """

    def __init__(
        self, store: KvStore, *, lock: threading.Lock | None = None, num_threads: int | None = None
    ) -> None:
        self._store, self._lock = store, lock or threading.Lock()
        self._num_threads = num_threads
        self.address = f"moorage-kv-{secrets.token_hex(16)}"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind("\0" + self.address)
        self._listener.listen(128)
        self._wake = os.eventfd(0)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._wake, selectors.EVENT_READ, self._stop)
        self._serving = True
        self._connections: dict[socket.socket, _Connection] = {}
        self._thread = threading.Thread(target=self._run, name="kv-mailbox", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Closes all connections and ends the thread. Idempotent."""
        if self._thread.is_alive():
            os.eventfd_write(self._wake, 1)
            self._thread.join()

    def _run(self) -> None:
        if self._num_threads is not None:
            numba.set_num_threads(min(self._num_threads, numba.config.NUMBA_NUM_THREADS))
        while self._serving:
            for key, _ in self._selector.select():
                serve: Callable[[], None] = key.data
                serve()
        for sock in list(self._connections):
            self._disconnect(sock)
        self._selector.close()
        self._listener.close()
        os.close(self._wake)

    def _stop(self) -> None:
        self._serving = False

    def _accept(self) -> None:
        sock, _ = self._listener.accept()
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
        if _PEER_CREDENTIALS.unpack(credentials)[1] != os.getuid():
            sock.close()
            return
        arena = self._store.arena
        hello = Hello(arena.layout, arena.num_pages, os.getpid())
        socket.send_fds(sock, [hello.pack()], [arena.fd])
        self._connections[sock] = _Connection(sock, self._store)
        self._selector.register(sock, selectors.EVENT_READ, lambda: self._serve(sock))

    def _serve(self, sock: socket.socket) -> None:
        connection = self._connections[sock]
        try:
            with self._lock:
                alive = connection.serve()
        except OSError:
            alive = False
        if not alive:
            self._disconnect(sock)

    def _disconnect(self, sock: socket.socket) -> None:
        self._selector.unregister(sock)
        self._connections.pop(sock).close()


class _Connection:
    """One worker's connection."""

    def __init__(self, sock: socket.socket, store: KvStore) -> None:
        self._sock, self._store = sock, store
        self._window: Window | None = None
        self._failure: MoorageError | None = None

    def serve(self) -> bool:
        """Takes one packet; False when the worker is gone or breaks the protocol."""
        if self._window is None:
            return self._take_window()
        packet = self._sock.recv(MAX_PACKET_BYTES)
        if len(packet) != REQUEST.size:
            return False
        request = Request._make(REQUEST.unpack(packet))
        if request.op == Op.COMMIT:
            self._commit(request)
        else:
            # A worker waits for each reply before it asks again, so a full socket means a broken worker.
            self._sock.send(self._answer(request, self._window), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
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

    def _commit(self, request: Request) -> None:
        try:
            self._store.commit(request.session_id, request.layer, request.start, request.end)
        except MoorageError as error:
            self._failure = self._failure or error

    def _answer(self, request: Request, window: Window) -> bytes:
        if self._failure is not None:
            failure, self._failure = self._failure, None
            return pack_error(failure)
        try:
            window.follow(request.window_bytes)
            handler = _HANDLERS.get(request.op)
            if handler is None:
                raise InvalidRequest(
                    f"mailbox: unknown operation {request.op}; use one version on both sides"
                )
            return handler(self, request, window)
        except MoorageError as error:
            return pack_error(error)
        except Exception as error:  # noqa: BLE001 - one request must not end the actor for all workers
            _log.exception("mailbox request %s failed", request)
            return pack_error(MoorageError(f"KV actor: {type(error).__name__}: {error}; see the actor's log"))

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

    def _reanchor(self, request: Request, window: Window) -> bytes:
        layout = self._store.layout
        importance = window.floats(0, request.num_rows, layout.num_kv_heads, layout.block_size)
        self._store.reanchor(request.session_id, request.layer, request.start, importance)
        return _DONE

    def _drop(self, request: Request, _: Window) -> bytes:
        self._store.drop(request.session_id)
        return _DONE

    def _stats(self, _request: Request, _window: Window) -> bytes:
        stats = self._store.stats()
        return _DONE + STATS.pack(
            stats.num_pages,
            stats.free_pages,
            stats.num_sessions,
            stats.num_sealed,
            stats.used_bytes,
            stats.capacity_bytes,
            stats.anchor_bytes,
        )

    def _request_of(self, request: Request, window: Window) -> SelectRequest:
        rows, heads, dim = request.num_rows, request.num_heads, self._store.layout.head_dim
        limits_offset = span(rows, heads, dim)
        return unpack_request(
            request,
            window.floats(0, rows, heads, dim),
            window.ints(limits_offset, rows),
            window.ints(limits_offset + span(rows), request.num_refined),
        )


_HANDLERS: dict[int, Callable[[_Connection, Request, Window], bytes]] = {
    Op.OPEN: _Connection._open,
    Op.RESIZE: _Connection._resize,
    Op.ATTACH: _Connection._attach,
    Op.TRUNCATE: _Connection._truncate,
    Op.SELECT: _Connection._select,
    Op.SCORE: _Connection._score,
    Op.CHOOSE: _Connection._choose,
    Op.KEEP: _Connection._keep,
    Op.DROP: _Connection._drop,
    Op.STATS: _Connection._stats,
    Op.REANCHOR: _Connection._reanchor,
}


def _put_pages(request: Request, window: Window, pages: Int32) -> bytes:
    window.ints(request.reply_offset, len(pages))[:] = pages
    return REPLY.pack(0, len(pages))


def _put_reply(request: Request, window: Window, reply: SelectReply) -> bytes:
    shape = reply.ids.shape
    window.ints(request.reply_offset, *shape)[:] = reply.ids
    window.floats(request.reply_offset + span(*shape), *shape)[:] = reply.scores
    return REPLY.pack(0, shape[1])
