"""The mailbox's wire format: small packets on a socket, bodies and arrays in a shared window.

    connect:   server -> worker   HELLO    + the arena's descriptor
               worker -> server   one byte + the window's descriptor
    call:      the worker writes the operation and its arrays at the start of the window, then sends one CALL
    reply:     the server writes the reply and its arrays behind them, then sends one REPLY; an error is in the packet
    post:      one POST, with operations of one type that have no arrays; their failures are told in later replies

Whichever end finds the window too small makes it larger, and tells the other its size. Packets of a Unix
SOCK_SEQPACKET socket stay whole and in order, and an end that dies closes it at once.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from moorage.workers.errors import InvalidRequest, MoorageError, NotFound, ResourceExhausted, StoreFull
from moorage.workers.kv.codec import Array, Codec, RecordCodec, codec_of
from moorage.workers.kv.operation import OPERATIONS, Operation
from moorage.workers.kv.window import Window, aligned
from moorage.workers.spec import KvLayout

MAX_PACKET_BYTES = 4096
REPLY = struct.Struct("<iiq")
"""Status, bytes of the body, bytes of the window; a message follows where the status is negative."""
_CALL = struct.Struct("<hiqq")
"""Number of the operation, bytes of its body, end of its arrays, bytes of the window."""
_KIND = struct.Struct("<h")
_POSTED = 1 << 14
"""Added to the number of operations that have no reply."""

_ERRORS: tuple[type[MoorageError], ...] = (
    MoorageError,
    InvalidRequest,
    NotFound,
    ResourceExhausted,
    StoreFull,
)


def pack_error(error: MoorageError) -> bytes:
    """A REPLY that carries `error`, as the nearest class that crosses the wire."""
    known = max(i for i, cls in enumerate(_ERRORS) if isinstance(error, cls))
    return REPLY.pack(-1 - known, 0, 0) + str(error).encode()[: MAX_PACKET_BYTES - REPLY.size]


def unpack_error(status: int, text: bytes) -> MoorageError:
    """The error of a REPLY with a negative status."""
    return _ERRORS[-1 - status](text.decode(errors="replace"))


class Placed(NamedTuple):
    """Where a message lies in the window."""

    body_bytes: int
    end: int
    """Behind its arrays."""


def put_message(window: Window, begin: int, codec: Codec, value: Any) -> Placed:
    """Writes a message and its arrays from `begin` of the window on; makes it larger where needed."""
    arrays: list[Array] = []
    body = codec.encode(value, arrays)
    end = offset = begin + aligned(len(body))
    for array in arrays:
        end += aligned(array.nbytes)
    window.grow(end)
    window.put_bytes(begin, body)
    for array in arrays:
        window.view(array.dtype.char, offset, array.shape)[...] = array
        offset += aligned(array.nbytes)
    return Placed(len(body), end)


def get_message(window: Window, begin: int, body_bytes: int, codec: Codec, copy: bool) -> Any:
    """The inverse of `put_message`; without `copy` arrays are views, valid until the window is written again."""
    offset = begin + aligned(body_bytes)

    def take(code: str, shape: tuple[int, ...]) -> Array:
        nonlocal offset
        array = window.view(code, offset, shape)
        offset += aligned(array.nbytes)
        return array.copy() if copy else array

    return codec.decode(window.get_bytes(begin, body_bytes), take)


def pack_call(operation: Operation[Any], placed: Placed, window_bytes: int) -> bytes:
    """The packet of an operation that lies at the start of the window."""
    return _CALL.pack(operation.number, *placed, window_bytes)


def pack_posts(operations: Sequence[Operation[Any]]) -> Iterator[bytes]:
    """The packets of operations of one type without arrays and replies."""
    kind, arrays = type(operations[0]), list[Array]()
    bodies = [codec_of(kind).encode(operation, arrays) for operation in operations]
    if arrays:
        raise TypeError(f"{kind.__name__} has arrays, so it can't be posted; call it")
    at_once = max(1, (MAX_PACKET_BYTES - _KIND.size) // max(1, len(bodies[0])))
    for start in range(0, len(bodies), at_once):
        yield _KIND.pack(_POSTED + kind.number) + b"".join(bodies[start : start + at_once])


def unpack_posts(packet: bytes) -> list[Operation[Any]] | None:
    """The operations of a packet of `pack_posts`; None for another packet. Raises as `Codec.decode` and KeyError."""
    (number,) = _KIND.unpack_from(packet)
    if number < _POSTED:
        return None
    codec = codec_of(OPERATIONS[number - _POSTED])
    if not isinstance(codec, RecordCodec):
        raise ValueError(f"operation {number - _POSTED} has lists, so it can't be posted")
    starts = range(_KIND.size, len(packet), codec.num_bytes)
    return [codec.decode(packet[start : start + codec.num_bytes], _no_array) for start in starts]


class Call(NamedTuple):
    """A packet of `pack_call`."""

    number: int
    body_bytes: int
    end: int
    """Behind the arrays, where the reply begins."""
    window_bytes: int

    @classmethod
    def unpack(cls, packet: bytes) -> Call:
        """Raises struct.error for other packets."""
        return cls._make(_CALL.unpack(packet))

    def operation(self, window: Window) -> Operation[Any]:
        """What the window holds. Raises InvalidRequest for what is not known here."""
        kind = OPERATIONS.get(self.number)
        if kind is None:
            raise InvalidRequest(f"mailbox: unknown operation {self.number}; use one version on both sides")
        operation: Operation[Any] = get_message(window, 0, self.body_bytes, codec_of(kind), copy=False)
        return operation


def _no_array(code: str, shape: tuple[int, ...]) -> Array:
    raise ValueError(f"array of {code}{shape} in a packet without a reply")


@dataclass(frozen=True, slots=True)
class Hello:
    """What a worker must know of a store before it can map the arena."""

    layout: KvLayout
    num_pages: int
    pid: int

    def pack(self) -> bytes:
        """The packet."""
        return codec_of(Hello).encode(self, [])

    @classmethod
    def unpack(cls, packet: bytes) -> Hello:
        """The inverse of `pack`."""
        hello: Hello = codec_of(cls).decode(packet, _no_array)
        return hello
