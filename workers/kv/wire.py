"""The mailbox's wire format: small fixed headers on a socket, arrays in a shared window.

    connect:   server -> worker   HELLO    + the arena's descriptor
               worker -> server   one byte + the window's descriptor
    request:   the worker writes the arrays at the start of the window, then sends one REQUEST
    reply:     the server writes the arrays at `reply_offset` of the window, then sends one REPLY
    COMMIT has no reply; its error is the status of the next reply for its session, except DROP's.

Packets of a Unix SOCK_SEQPACKET socket stay whole and in order, and an end that dies closes it at once.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from moorage.workers.errors import InvalidRequest, MoorageError, NotFound, ResourceExhausted, StoreFull
from moorage.workers.kv.messages import Pooling
from moorage.workers.spec import AnchorType, KvLayout, KvType

REQUEST = struct.Struct("<HHiqqqiiiidqq")
REPLY = struct.Struct("<ii")
"""Status, and a count that depends on the op; STATS and errors go on with bytes of their own."""
STATS = struct.Struct("<7q")
_HELLO = struct.Struct("<4iq16s16siq")
MAX_PACKET_BYTES = 4096

_SHARED, _USE_PRESELECTED, _POOLING_SHIFT = 1, 2, 8
_POOLINGS = tuple(Pooling)
_ERRORS: tuple[type[MoorageError], ...] = (
    MoorageError,
    InvalidRequest,
    NotFound,
    ResourceExhausted,
    StoreFull,
)


class Op(IntEnum):
    """What a request asks for."""

    COMMIT = 1
    OPEN = 2
    RESIZE = 3
    ATTACH = 4
    TRUNCATE = 5
    SELECT = 6
    SCORE = 7
    CHOOSE = 8
    MASS = 9
    KEEP = 10
    DROP = 11
    STATS = 12


class Request(NamedTuple):
    """The header of a request; fields that an op does not name are 0."""

    op: int
    flags: int = 0
    layer: int = 0
    session_id: int = 0
    start: int = 0
    """First token of COMMIT, first block of SELECT and SCORE."""
    end: int = 0
    """End of COMMIT; blocks of OPEN and RESIZE; tokens of TRUNCATE; number of ids of KEEP."""
    num_rows: int = 0
    num_heads: int = 0
    k: int = 0
    reserved: int = 0
    scale: float = 0.0
    reply_offset: int = 0
    window_bytes: int = 0


def pack_flags(shared: bool, use_preselected: bool, pooling: Pooling) -> int:
    """The flags of SELECT and SCORE."""
    choice = _POOLINGS.index(pooling) << _POOLING_SHIFT
    return choice | (_SHARED if shared else 0) | (_USE_PRESELECTED if use_preselected else 0)


def unpack_flags(flags: int) -> tuple[bool, bool, Pooling]:
    """The inverse of `pack_flags`."""
    return bool(flags & _SHARED), bool(flags & _USE_PRESELECTED), _POOLINGS[flags >> _POOLING_SHIFT]


def pack_error(error: MoorageError) -> bytes:
    """A REPLY that carries `error`, as the nearest class that crosses the wire."""
    known = max(i for i, cls in enumerate(_ERRORS) if isinstance(error, cls))
    return REPLY.pack(-1 - known, 0) + str(error).encode()[: MAX_PACKET_BYTES - REPLY.size]


def unpack_error(status: int, text: bytes) -> MoorageError:
    """The error of a REPLY with a negative status."""
    return _ERRORS[-1 - status](text.decode(errors="replace"))


@dataclass(frozen=True, slots=True)
class Hello:
    """What a worker must know of a store before it can map the arena."""

    layout: KvLayout
    num_pages: int
    pid: int

    def pack(self) -> bytes:
        """The packet."""
        layout = self.layout
        return _HELLO.pack(
            layout.num_layers,
            layout.num_kv_heads,
            layout.head_dim,
            layout.block_size,
            self.num_pages,
            layout.kv_type.encode(),
            layout.anchor_type.encode(),
            layout.anchor_num,
            self.pid,
        )

    @classmethod
    def unpack(cls, packet: bytes) -> Hello:
        """The inverse of `pack`."""
        layers, heads, dim, size, num_pages, kv, anchor, anchor_num, pid = _HELLO.unpack(packet)
        kv_type, anchor_type = (name.rstrip(b"\0").decode() for name in (kv, anchor))
        layout = KvLayout(layers, heads, dim, size, KvType(kv_type), AnchorType(anchor_type), anchor_num)
        return cls(layout, num_pages, pid)
