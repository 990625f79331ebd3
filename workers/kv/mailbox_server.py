"""The actor's end of the mailbox: one thread that serves many workers of the same host."""

from __future__ import annotations

import logging
import os
import secrets
import select
import socket
import struct
import threading
from collections.abc import Callable

import numba

from moorage.workers.errors import InvalidRequest, MoorageError
from moorage.workers.kv.messages import Int32, SelectReply, SelectRequest
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
    unpack_flags,
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
        self._poll = select.epoll()
        self._poll.register(self._listener, select.EPOLLIN)
        self._poll.register(self._wake, select.EPOLLIN)
        self._connections: dict[int, _Connection] = {}
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
        ready: list[int] = []
        while self._wake not in ready:
            ready = [fd for fd, _ in self._poll.poll()]
            for fd in ready:
                if fd in self._connections:
                    self._serve(fd)
                elif fd == self._listener.fileno():
                    self._accept()
        for fd in list(self._connections):
            self._disconnect(fd)
        self._poll.close()
        self._listener.close()
        os.close(self._wake)

    def _accept(self) -> None:
        sock, _ = self._listener.accept()
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
        if _PEER_CREDENTIALS.unpack(credentials)[1] != os.getuid():
            sock.close()
            return
        arena = self._store.arena
        hello = Hello(arena.layout, arena.num_pages, os.getpid())
        socket.send_fds(sock, [hello.pack()], [arena.fd])
        self._connections[sock.fileno()] = _Connection(sock, self._store)
        self._poll.register(sock, select.EPOLLIN)

    def _serve(self, fd: int) -> None:
        connection = self._connections[fd]
        try:
            with self._lock:
                alive = connection.serve()
        except OSError:
            alive = False
        if not alive:
            self._disconnect(fd)

    def _disconnect(self, fd: int) -> None:
        self._poll.unregister(fd)
        self._connections.pop(fd).close()


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
        return _put_pages(request, window, self._store.open(request.session_id, request.end))

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

    def _mass(self, request: Request, window: Window) -> bytes:
        mass = self._store.mass(request.session_id, window.floats(0, request.num_rows, request.num_heads))
        window.floats(request.reply_offset, len(mass))[:] = mass
        return REPLY.pack(0, len(mass))

    def _keep(self, request: Request, window: Window) -> bytes:
        self._store.keep(request.session_id, request.layer, window.ints(0, request.end).copy())
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
        shared, use_preselected, pooling = unpack_flags(request.flags)
        return SelectRequest(
            request.session_id,
            request.layer,
            window.floats(0, rows, heads, dim),
            request.start,
            window.ints(span(rows, heads, dim), rows),
            request.k,
            shared,
            request.scale,
            use_preselected,
            pooling,
        )


_HANDLERS: dict[int, Callable[[_Connection, Request, Window], bytes]] = {
    Op.OPEN: _Connection._open,
    Op.RESIZE: _Connection._resize,
    Op.ATTACH: _Connection._attach,
    Op.TRUNCATE: _Connection._truncate,
    Op.SELECT: _Connection._select,
    Op.SCORE: _Connection._score,
    Op.CHOOSE: _Connection._choose,
    Op.MASS: _Connection._mass,
    Op.KEEP: _Connection._keep,
    Op.DROP: _Connection._drop,
    Op.STATS: _Connection._stats,
}


def _put_pages(request: Request, window: Window, pages: Int32) -> bytes:
    window.ints(request.reply_offset, len(pages))[:] = pages
    return REPLY.pack(0, len(pages))


def _put_reply(request: Request, window: Window, reply: SelectReply) -> bytes:
    shape = reply.ids.shape
    window.ints(request.reply_offset, *shape)[:] = reply.ids
    window.floats(request.reply_offset + span(*shape), *shape)[:] = reply.scores
    return REPLY.pack(0, shape[1])
