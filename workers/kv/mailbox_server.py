"""The actor's end of the mailbox: one thread that serves many workers of the same host."""

from __future__ import annotations

import logging
import os
import secrets
import select
import socket
import struct
import threading

import numba

from moorage.workers.kv.mailbox_connection import Connection
from moorage.workers.kv.store import KvStore
from moorage.workers.kv.wire import Hello

_log = logging.getLogger(__name__)
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
        self._connections: dict[int, Connection] = {}
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
        try:
            self._greet(sock)
        except OSError as error:
            _log.warning("mailbox: a worker left before it was connected: %s", error)
            sock.close()
        else:
            self._connections[sock.fileno()] = Connection(sock, self._store)
            self._poll.register(sock, select.EPOLLIN)

    def _greet(self, sock: socket.socket) -> None:
        """Hands over the arena. Raises OSError if the worker is gone or of another user."""
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
        if _PEER_CREDENTIALS.unpack(credentials)[1] != os.getuid():
            raise PermissionError("it runs as another user")
        arena = self._store.arena
        hello = Hello(arena.layout, arena.num_pages, os.getpid())
        socket.send_fds(sock, [hello.pack()], [arena.fd])

    def _serve(self, fd: int) -> None:
        connection = self._connections[fd]
        try:
            with self._lock:
                alive = connection.serve()
        except OSError:
            alive = False
        except Exception:  # noqa: BLE001 - one worker must not end the thread for all
            _log.exception("mailbox: a packet could not be read, so its worker is disconnected")
            alive = False
        if not alive:
            self._disconnect(fd)

    def _disconnect(self, fd: int) -> None:
        self._poll.unregister(fd)
        self._connections.pop(fd).close()
