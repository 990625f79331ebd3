"""What the mailbox server does for one worker: takes a packet, asks the store, answers."""

from __future__ import annotations

import logging
import os
import socket
import struct
from typing import Any

from moorage.workers.errors import InvalidRequest, MoorageError
from moorage.workers.kv.codec import codec_of
from moorage.workers.kv.dispatch import Dispatch
from moorage.workers.kv.operation import Operation
from moorage.workers.kv.store import KvStore
from moorage.workers.kv.window import Window
from moorage.workers.kv.wire import (
    MAX_PACKET_BYTES,
    REPLY,
    Call,
    pack_error,
    put_message,
    unpack_posts,
)

_log = logging.getLogger(__name__)


class Connection:
    """One worker's connection."""

    def __init__(self, sock: socket.socket, store: KvStore) -> None:
        self._sock, self._dispatch = sock, Dispatch(store)
        self._window: Window | None = None

    def serve(self) -> bool:
        """Takes one packet; False when the worker is gone or breaks the protocol."""
        if self._window is None:
            return self._take_window()
        packet = self._sock.recv(MAX_PACKET_BYTES)
        if not packet:
            return False
        try:
            posted = unpack_posts(packet)
            call = Call.unpack(packet) if posted is None else None
        except (struct.error, KeyError, ValueError, IndexError):
            return False
        if call is None:
            for operation in posted or ():
                self._post(operation)
            return True
        # A worker waits for each reply before it asks again, so a full socket means a broken worker.
        self._sock.send(self._answer(call, self._window), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
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

    def _post(self, operation: Operation[Any]) -> None:
        try:
            self._dispatch.post(operation)
        except Exception as error:  # noqa: BLE001 - as for operations that are answered
            self._dispatch.fail(operation, _unexpected(error, operation))

    def _answer(self, call: Call, window: Window) -> bytes:
        """The packet of the reply, whose body lies in the window."""
        operation: Operation[Any] | None = None
        try:
            window.follow(call.window_bytes)
            operation = call.operation(window)
            reply = self._dispatch.call(operation)
            placed = put_message(window, call.end, codec_of(operation.reply_type), reply)
            return REPLY.pack(0, placed.body_bytes, window.num_bytes)
        except MoorageError as error:
            return pack_error(error)
        except Exception as error:  # noqa: BLE001 - one request must not end the actor for all workers
            return pack_error(_unexpected(error, operation or call))


def _unexpected(error: Exception, asked: object) -> MoorageError:
    """Logs what nobody foresaw with its traceback; returns what the worker is told."""
    _log.error("mailbox request %s failed", asked, exc_info=error)
    return MoorageError(f"KV actor: {type(error).__name__}: {error}; see the actor's log")
