"""The worker's connection to a mailbox server: the socket, the window and the mapped arena."""

from __future__ import annotations

import logging
import os
import socket
import struct
import time

from moorage.workers.errors import MoorageError, PeerDead
from moorage.workers.kv.arena import Arena
from moorage.workers.kv.window import Window
from moorage.workers.kv.wire import MAX_PACKET_BYTES, REPLY, REQUEST, Hello, Request, unpack_error

_log = logging.getLogger(__name__)
YIELD_S = 0.001
"""How long an answer is looked for before its worker sleeps. A worker that sleeps is woken, on a core that sleeps as
well, for some 40 us; one that looks has nothing else to do, and lets everybody else on its core go first."""
_TIMEVAL = struct.Struct("@ll")


class Channel:
    """One request at a time, and any number of one-way messages between.

    The kernel closes the socket with the server's process, so its death is an error of the call under way.
    """

    def __init__(self, address: str, timeout_s: float) -> None:
        """Connects and maps the arena. Raises PeerDead when nobody serves `address`."""
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        timeval = _TIMEVAL.pack(int(timeout_s), int(timeout_s % 1 * 1e6))
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
        self._waiting = False
        self.packet = bytearray(MAX_PACKET_BYTES)
        """The last reply."""
        self.window = Window.create()
        try:
            hello, arena_fd = self._greet(address)
            self.arena = Arena.attach(arena_fd, hello.layout, hello.num_pages)
        except OSError as error:
            raise PeerDead(f"KV mailbox {address}: {error}; start the KV actor again") from error
        finally:
            if not hasattr(self, "arena"):
                self._sock.close()
                self.window.close()
        self.pid = hello.pid

    def _greet(self, address: str) -> tuple[Hello, int]:
        """Connects and hands over the window; returns what the server says, and the arena's descriptor."""
        self._sock.connect("\0" + address)
        packet, fds, _, _ = socket.recv_fds(self._sock, MAX_PACKET_BYTES, 1)
        if len(fds) != 1:
            raise ConnectionRefusedError("it gives its arena to its own user only")
        try:
            socket.send_fds(self._sock, [b"w"], [self.window.fd])
        except OSError:
            os.close(fds[0])
            raise
        return Hello.unpack(packet), fds[0]

    def reserve(self, num_bytes: int) -> None:
        """Makes the window free and large enough for a new request."""
        self._pass_over()
        self.window.grow(num_bytes)

    def call(self, request: Request, room: int) -> int:
        """Sends a request, with `room` for an answer at the window's start; returns the reply's count."""
        self._pass_over()
        self.window.grow(room)
        self.send(request._replace(window_bytes=self.window.num_bytes))
        return self.receive()

    def send(self, *requests: Request) -> None:
        """Sends requests, in one packet, whose one reply `receive` waits for."""
        self.post(*requests)
        self._waiting = True

    def post(self, *requests: Request) -> None:
        """Sends a one-way message."""
        try:
            self._sock.send(b"".join(REQUEST.pack(*each) for each in requests), socket.MSG_NOSIGNAL)
        except OSError as error:
            raise self._died(error) from error

    def receive(self) -> int:
        """Waits for the reply; returns its count, or raises the error it carries."""
        self._waiting = False
        try:
            size = self._take()
        except OSError as error:
            raise self._died(error) from error
        if size == 0:
            raise self._died(ConnectionResetError("it closed the connection"))
        status, count = REPLY.unpack_from(self.packet)
        if status < 0:
            raise unpack_error(status, bytes(self.packet[REPLY.size : size]))
        return int(count)

    def _take(self) -> int:
        """Bytes of the next packet, which is put into `packet`."""
        until_s = time.perf_counter() + YIELD_S
        while time.perf_counter() < until_s:
            try:
                return self._sock.recv_into(self.packet, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                os.sched_yield()
        return self._sock.recv_into(self.packet)

    def close(self) -> None:
        """Ends the connection and unmaps the arena. Idempotent."""
        self._sock.close()
        self.window.close()
        self.arena.close()

    def _pass_over(self) -> None:
        """Takes the reply that nobody collected, so that the next one answers the next request."""
        if not self._waiting:
            return
        try:
            self.receive()
        except PeerDead:
            raise
        except MoorageError as error:
            _log.warning("mailbox: nobody collected %s", error)

    def _died(self, reason: OSError) -> PeerDead:
        self._sock.close()
        return PeerDead(f"KV actor (pid {self.pid}): {reason}; start it again, its sessions are lost")
