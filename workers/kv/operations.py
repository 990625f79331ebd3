"""Everything that can be asked of a KV store: one record for each operation.

Every link carries these records, through the mailbox, by Ray or in one process. A new operation is a class here and
the method of `KvStore` that `handler` names, which takes the fields in their order. The types of the fields, and of
the reply, which is the argument of `Operation`, say how both travel. Positions and block ids are those of the shard.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from moorage.workers.kv.mapped_shard import MappedShard
from moorage.workers.kv.messages import (
    AnchorRotation,
    Attached,
    Float32,
    Int32,
    KeyReply,
    KeyRequest,
    KeyRowsReply,
    KeyRowsRequest,
    SelectReply,
    SelectRequest,
    Storage,
    StoreStats,
)
from moorage.workers.kv.operation import Operation, Selecting

T = TypeVar("T")


@dataclass(slots=True)
class Open(Operation[Attached]):
    """Reserves pages and returns them. If StoreFull or InvalidRequest is raised, nothing has changed."""

    handler = "open_attached"
    session_id: int
    num_blocks: int
    rotation: AnchorRotation | None = None
    has_first: bool = True
    """Whether the session's first tokens are stored here."""
    is_written: bool = True
    """Whether rows will come that fill no block yet; otherwise there are no open pages."""

    def follow(self, shard: MappedShard, reply: Attached) -> None:
        """See Operation."""
        shard.follow_open(self.session_id, reply)


@dataclass(slots=True)
class Resize(Operation[Attached]):
    """Grows a session, or frees its unwritten end; returns all pages. If StoreFull is raised, nothing has changed."""

    handler = "resize"
    session_id: int
    num_blocks: int
    is_written: bool = True
    """As in Open."""

    def follow(self, shard: MappedShard, reply: Attached) -> None:
        """See Operation."""
        shard.session(self.session_id).table.take_pages(reply)


@dataclass(slots=True)
class Fork(Operation[Attached]):
    """Opens a session that shares the first blocks of another, all sealed. Idempotent."""

    handler = "fork"
    session_id: int
    new_id: int
    num_blocks: int
    num_rest: int = 0
    """Tokens of the next block, which is copied."""

    def follow(self, shard: MappedShard, reply: Attached) -> None:
        """See Operation."""
        shard.follow_open(self.new_id, reply)


@dataclass(slots=True)
class OwnBlock(Operation[Int32]):
    """Copies a block that other sessions hold as well, before this one writes to it; returns all pages."""

    handler = "own_block"
    session_id: int
    block: int

    def follow(self, shard: MappedShard, reply: Int32) -> None:
        """See Operation."""
        shard.session(self.session_id).table.pages = reply


@dataclass(slots=True)
class Restore(Operation[None]):
    """The first blocks of a new session count as sealed; their bytes come from a file, before anybody reads them."""

    handler = follower = "restore"
    session_id: int
    num_blocks: int
    num_rest: int = 0
    """Tokens of the block after them."""


@dataclass(slots=True)
class Attach(Operation[Attached]):
    """Takes over a session that another link opened."""

    handler = "attach"
    session_id: int

    def follow(self, shard: MappedShard, reply: Attached) -> None:
        """See Operation."""
        shard.follow_open(self.session_id, reply)


@dataclass(slots=True)
class Drop(Operation[None]):
    """Frees a session. Idempotent."""

    handler = follower = "drop"
    session_id: int


@dataclass(slots=True)
class Write(Operation[None]):
    """Stores rows [T, Hkv, D] from token `start` on, for a worker that does not map the store's memory."""

    handler = "write"
    session_id: int
    layer: int
    start: int
    keys: Storage
    values: Storage


@dataclass(slots=True)
class Commit(Operation[None]):
    """Rows [start, end) of a layer are complete, and what was stored after them is gone."""

    handler = "commit"
    follower = "follow_commit"
    session_id: int
    layer: int
    start: int
    end: int
    is_sealed: bool = False
    """Whether who wrote the rows has sealed the blocks that they fill."""


@dataclass(slots=True)
class CloseBlock(Operation[None]):
    """A session goes on in another store: its open block here, which is full, is read as it is packed."""

    handler = follower = "close_block"
    session_id: int
    layer: int


@dataclass(slots=True)
class Reseal(Operation[None]):
    """Anchors of the sealed blocks among `num_tokens` tokens are made from all of their keys again."""

    handler = "reseal"
    follower = "follow_reseal"
    session_id: int
    layer: int
    num_tokens: int


@dataclass(slots=True)
class CommitRow(Operation[None]):
    """The row at `position` is complete in all layers."""

    handler = "commit_row"
    follower = "follow_row"
    session_id: int
    position: int


@dataclass(slots=True)
class Confirm(Operation[None]):
    """Its reply comes when all that was committed before is sealed, or tells what a commit of these sessions failed
    with."""

    handler = "confirm"
    session_ids: NDArray[np.int64]

    @property
    def sessions(self) -> list[int]:
        """See Operation."""
        return [int(session_id) for session_id in self.session_ids]


@dataclass(slots=True)
class Truncate(Operation[None]):
    """Removes the tokens after the first `num_tokens`; the pages stay reserved."""

    handler = follower = "truncate"
    session_id: int
    num_tokens: int


@dataclass(slots=True)
class RebuildAnchors(Operation[None]):
    """Makes anchors of sealed blocks from `first` on, given their keys' importance [n, Hkv, B]."""

    handler = "rebuild_anchors"
    session_id: int
    layer: int
    first: int
    importance: Float32

    def follow(self, shard: MappedShard, reply: None) -> None:
        """See Operation."""
        del reply
        shard.invalidate(self.session_id, self.layer)


@dataclass(slots=True)
class Stats(Operation[StoreStats]):
    """Counts and bytes."""

    handler = "stats"


@dataclass(slots=True)
class CopyBlocks(Selecting[Storage]):
    """Copies of blocks, [n, 2, Hkv, B, D] of storage type, for a worker that does not map the store's memory."""

    handler = "copy_blocks"
    session_id: int
    layer: int
    blocks: Int32


@dataclass(slots=True)
class Asking(Selecting[T]):
    """A selection of one session."""

    request: SelectRequest

    @property
    def sessions(self) -> list[int]:
        """See Operation."""
        return [self.request.session_id]


@dataclass(slots=True)
class Select(Asking[SelectReply]):
    """The best blocks of this shard alone."""

    handler = "select"


@dataclass(slots=True)
class Score(Asking[Float32]):
    """[R, Hq] log-sum-exp of the logits of this shard's blocks; the logits wait for `SelectScored`."""

    handler = "score"


@dataclass(slots=True)
class SelectScored(Selecting[SelectReply]):
    """The best blocks of the session's last `Score`, given the log-sum-exp [R, Hq] over all shards."""

    handler = "select_scored"
    session_id: int
    lse: Float32


@dataclass(slots=True)
class SelectTogether(Selecting[list[SelectReply]]):
    """The best blocks of at least one request each of some sessions; all fail if one does."""

    handler = "select_together"
    requests: list[SelectRequest]

    @property
    def sessions(self) -> list[int]:
        """See Operation."""
        return [request.session_id for request in self.requests]


@dataclass(slots=True)
class Preselect(Selecting[None]):
    """Restricts later selections with `use_preselected`: of the blocks before `limit`, to ascending `blocks`."""

    handler = "preselect"
    session_id: int
    layer: int
    blocks: Int32
    limit: int


@dataclass(slots=True)
class SelectKeys(Selecting[list[KeyReply]]):
    """The best single keys of this shard, for at least one request each of some sessions; all fail if one does."""

    handler = "select_keys"
    runs_on_mapping = True
    requests: list[KeyRequest]

    @property
    def sessions(self) -> list[int]:
        """See Operation."""
        return [request.session_id for request in self.requests]


@dataclass(slots=True)
class KeyRows(Selecting[list[KeyRowsReply]]):
    """Keys and values of selected tokens, and the completion, for each of `wanted`."""

    handler = "key_rows"
    runs_on_mapping = True
    wanted: list[KeyRowsRequest]

    @property
    def sessions(self) -> list[int]:
        """See Operation."""
        return [one.request.session_id for one in self.wanted]
