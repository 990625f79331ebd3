"""The worker's connection to a mailbox server: the socket, the window and the mapped arena."""

from __future__ import annotations

import logging
import os
import socket
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from moorage.workers.errors import MoorageError, PeerDead
from moorage.workers.kv.arena import Arena
from moorage.workers.kv.codec import Codec, codec_of
from moorage.workers.kv.operation import Operation
from moorage.workers.kv.window import Window
from moorage.workers.kv.wire import (
    MAX_PACKET_BYTES,
    REPLY,
    Hello,
    get_message,
    pack_call,
    pack_posts,
    put_message,
    unpack_error,
)

_log = logging.getLogger(__name__)
YIELD_S = 0.001
"""How long an answer is looked for before its worker sleeps. A worker that sleeps is woken, on a core that sleeps as
well, for some 40 us; one that looks has nothing else to do, and lets everybody else on its core go first."""
LOOK_S = 1.0
"""Seconds between two looks at a server that keeps its worker waiting."""
_TIMEVAL = struct.Struct("@ll")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a worker waits for its server, counted in looks, so that the worker's own pauses are not counted."""

    silent_s: float = 60.0
    """Patience with a server that runs and does not answer."""
    stopped_s: float = 600.0
    """Patience with a server that is stopped, by SIGSTOP or a debugger, and may go on."""


class Channel:
    """One request at a time, and any number of one-way messages between.

    The kernel closes the socket with the server's process, so its death is an error of the call under way. `name` is
    the server's, for messages.
    """

    def __init__(self, address: str, patience: Patience, name: str = "") -> None:
        """Connects and maps the arena. Raises PeerDead when nobody serves `address`."""
        self._patience, self._name = patience, name
        self._look_s = min(LOOK_S, patience.silent_s, patience.stopped_s)
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._limit_calls(patience.silent_s)
        self._waiting = False
        self._dead: PeerDead | None = None
        self.packet = bytearray(MAX_PACKET_BYTES)
        """The last reply."""
        self.window = Window.create()
        try:
            hello, arena_fd = self._greet(address)
            self.arena = Arena.attach(arena_fd, hello.layout, hello.num_pages)
        except OSError as error:
            silent = isinstance(error, BlockingIOError)
            why = f"it has not answered for {patience.silent_s:g} s" if silent else str(error)
            raise PeerDead(f"KV actor {name or address}: {why}; start the cluster again") from error
        finally:
            if not hasattr(self, "arena"):
                self._sock.close()
                self.window.close()
        self.pid = hello.pid
        self._limit_calls(self._look_s)

    def _limit_calls(self, seconds: float) -> None:
        """A call of the socket that takes longer raises BlockingIOError."""
        timeval = _TIMEVAL.pack(int(seconds), int(seconds % 1 * 1e6))
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)

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

    def post(self, operations: Sequence[Operation[Any]]) -> None:
        """Sends operations of one type that have no replies."""
        for packet in pack_posts(operations):
            self._send(packet)

    def submit(self, operation: Operation[T]) -> Callable[[], T]:
        """Sends an operation; what it returns waits for the reply."""
        self._pass_over()
        placed = put_message(self.window, 0, codec_of(type(operation)), operation)
        self._send(pack_call(operation, placed, self.window.num_bytes))
        self._waiting = True
        return partial(self._reply, codec_of(operation.reply_type), placed.end)

    def _reply(self, codec: Codec, begin: int) -> Any:
        """The reply, which lies in the window from `begin` on."""
        body_bytes, window_bytes = self._receive()
        self.window.follow(window_bytes)
        return get_message(self.window, begin, body_bytes, codec, copy=True)

    def _send(self, packet: bytes) -> None:
        self._patiently(lambda: self._sock.send(packet, socket.MSG_NOSIGNAL))

    def _receive(self) -> tuple[int, int]:
        """Waits for the reply; returns the bytes of its body and of the window. Raises the error it carries."""
        self._waiting = False
        size = self._patiently(self._take)
        if size == 0:
            raise self._died("is gone")
        status, body_bytes, window_bytes = REPLY.unpack_from(self.packet)
        if status < 0:
            raise unpack_error(status, bytes(self.packet[REPLY.size : size]))
        return body_bytes, window_bytes

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
            self._receive()
        except PeerDead:
            raise
        except MoorageError as error:
            _log.warning("mailbox: nobody collected %s", error)

    def _patiently(self, call: Callable[[], T]) -> T:
        """What `call` returns, made anew as long as patience lasts. Raises PeerDead after that."""
        if self._dead is not None:
            raise self._dead
        silent_s = stopped_s = 0.0
        while True:
            try:
                return call()
            except BlockingIOError:
                if _is_stopped(self.pid):
                    silent_s, stopped_s = 0.0, stopped_s + self._look_s
                else:
                    silent_s, stopped_s = silent_s + self._look_s, 0.0
            except OSError as error:
                raise self._died("is gone") from error
            if silent_s >= self._patience.silent_s:
                raise self._died(f"runs, and has not answered for {silent_s:g} s")
            if stopped_s >= self._patience.stopped_s:
                raise self._died(f"has been stopped (state T) for {stopped_s:g} s")

    def _died(self, what: str) -> PeerDead:
        """The error of this call and of every later one."""
        self._sock.close()
        who = f"KV actor {self._name}".rstrip()
        self._dead = PeerDead(
            f"{who} (pid {self.pid}) {what}, and its sessions are lost; start the cluster again"
        )
        return self._dead


def _is_stopped(pid: int) -> bool:
    """Whether the kernel holds the process stopped or traced (state T or t)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] in (b"T", b"t")
    except OSError:
        return False
