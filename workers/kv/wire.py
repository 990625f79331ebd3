"""The mailbox's wire format: small fixed headers on a socket, arrays in a shared window.

    connect:   server -> worker   HELLO    + the arena's descriptor
               worker -> server   one byte + the window's descriptor
    request:   the worker writes the arrays at the start of the window, then sends one REQUEST
    reply:     the server writes the arrays at `reply_offset` of the window, then sends one REPLY
    several SELECT in one packet, one behind the other, have one REPLY
    COMMIT has no reply; its error is the status of the next reply for its session, except DROP's.
    several COMMIT_ROW in one packet have a reply if the first asks for one: the sessions that have failed

Packets of a Unix SOCK_SEQPACKET socket stay whole and in order, and an end that dies closes it at once.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from moorage.workers.errors import InvalidRequest, MoorageError, NotFound, ResourceExhausted, StoreFull
from moorage.workers.kv.messages import Float32, Int32, SelectRequest
from moorage.workers.spec import AnchorPool, AnchorSpace, AnchorType, HeadPool, KvLayout, KvType, Scorer

REQUEST = struct.Struct("<HHiqqqiiiidqq")
REPLY = struct.Struct("<ii")
"""Status, and a count that depends on the op; STATS and errors go on with bytes of their own."""
STATS = struct.Struct("<7q")
REPLY_WANTED = 1
"""The flag of a COMMIT_ROW that has a reply."""
_HELLO = struct.Struct("<4iq16s16si16si16s?q")
MAX_PACKET_BYTES = 4096
MAX_TOGETHER = MAX_PACKET_BYTES // REQUEST.size
"""Requests of one packet."""

_SHARED, _USE_PRESELECTED, _PERHEAD, _ANCHOR_SUM, _REFINE, _POOLING_SHIFT = 1, 2, 4, 8, 16, 8
_POOLINGS = tuple(HeadPool)
_POOLING_FLAGS = {pooling: i << _POOLING_SHIFT for i, pooling in enumerate(_POOLINGS)}
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
    KEEP = 9
    DROP = 10
    STATS = 11
    REBUILD_ANCHORS = 12
    COMMIT_ROW = 13
    CONFIRM = 14


class Request(NamedTuple):
    """The header of a request; fields that an op does not name are 0."""

    op: int
    flags: int = 0
    layer: int = 0
    session_id: int = 0
    start: int = 0
    """First token of COMMIT and COMMIT_ROW, first block of SELECT, SCORE and REANCHOR; limit of KEEP; angles of
    OPEN."""
    end: int = 0
    """End of COMMIT; blocks of OPEN and RESIZE; tokens of TRUNCATE; number of ids of KEEP; offset of the arrays of
    SELECT and SCORE."""
    num_rows: int = 0
    """Rows of SELECT and SCORE, blocks of REANCHOR; of an OPEN with angles, its shard."""
    num_heads: int = 0
    """Of an OPEN with angles, the number of shards."""
    k: int = 0
    """Of an OPEN with angles, the blocks of a stripe."""
    num_refined: int = 0
    """Blocks that SELECT and SCORE choose among, if they refine."""
    scale: float = 0.0
    reply_offset: int = 0
    window_bytes: int = 0


def pack_flags(request: SelectRequest) -> int:
    """The flags of SELECT and SCORE."""
    return (
        _POOLING_FLAGS[request.pooling]
        | (request.shared and _SHARED)
        | (request.use_preselected and _USE_PRESELECTED)
        | (request.perhead and _PERHEAD)
        | (request.anchor_pool is AnchorPool.SUM and _ANCHOR_SUM)
        | (request.refine is not None and _REFINE)
    )


def unpack_request(header: Request, queries: Float32, limits: Int32, refine: Int32) -> SelectRequest:
    """The request of a SELECT or SCORE header and its arrays."""
    flags = header.flags
    return SelectRequest(
        header.session_id,
        header.layer,
        queries,
        header.start,
        limits,
        header.k,
        bool(flags & _SHARED),
        header.scale,
        bool(flags & _USE_PRESELECTED),
        _POOLINGS[flags >> _POOLING_SHIFT],
        AnchorPool.SUM if flags & _ANCHOR_SUM else AnchorPool.MAX,
        bool(flags & _PERHEAD),
        refine if flags & _REFINE else None,
    )


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
            layout.anchor_space.encode(),
            layout.repr_topk,
            layout.scorer.encode(),
            layout.anchor_codes,
            self.pid,
        )

    @classmethod
    def unpack(cls, packet: bytes) -> Hello:
        """The inverse of `pack`."""
        layers, heads, dim, size, num_pages, *rest, pid = _HELLO.unpack(packet)
        kv, anchor, anchor_num, space, repr_topk, scorer, anchor_codes = rest
        kv_type, anchor_type, anchor_space = (name.rstrip(b"\0").decode() for name in (kv, anchor, space))
        layout = KvLayout(
            layers,
            heads,
            dim,
            size,
            KvType(kv_type),
            AnchorType(anchor_type),
            anchor_num,
            AnchorSpace(anchor_space),
            repr_topk,
            Scorer(scorer.rstrip(b"\0").decode()),
            anchor_codes,
        )
        return cls(layout, num_pages, pid)
