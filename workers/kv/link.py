"""How a worker reaches one KV store: the interface, and its form inside one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from moorage.workers.kv.dispatch import Dispatch
from moorage.workers.kv.mapped_shard import MappedShard
from moorage.workers.kv.messages import Int32, Storage
from moorage.workers.kv.operation import Operation
from moorage.workers.kv.operations import Confirm, CopyBlocks, Write
from moorage.workers.kv.store import KvStore

T = TypeVar("T")


class Link(Protocol):
    """One worker's way to one KV store.

    A link serves one thread, and its operations take effect in their order. Every method raises PeerDead when the
    store's process is gone.
    """

    scores_here: bool
    """Whether selections run in this process where it maps the store's memory; set before the first session."""

    @property
    def shard(self) -> MappedShard | None:
        """The sessions in this process's own view of the store's memory; None where it maps none."""

    def call(self, operation: Operation[T]) -> T:
        """Asks and waits for the reply. May raise what an operation without a reply failed with before."""

    def submit(self, operation: Operation[T]) -> Callable[[], T]:
        """Asks at once; what it returns waits for the reply, so that several shards work at the same time.

        One submission may be open on a link.
        """

    def post(self, *operations: Operation[Any]) -> None:
        """Asks for operations of one type without waiting; a later call for their sessions tells what failed."""

    def close(self) -> None:
        """Ends the link; the sessions stay. Idempotent."""


def confirm(link: Link, session_id: int) -> None:
    """Waits until the store has sealed what counts as sealed in this process.

    Raises what a commit of the session failed with.
    """
    if link.shard is not None and session_id in link.shard.unconfirmed:
        link.call(Confirm(np.array([session_id], np.int64)))


def write_rows(
    link: Link, session_id: int, layer: int, start: int, keys: ArrayLike, values: ArrayLike
) -> None:
    """Stores rows [T, Hkv, D] from token `start` on: straight in the store's memory, or by `Write`."""
    if link.shard is not None:
        link.shard.write(session_id, layer, start, keys, values)
    else:
        rows = np.ascontiguousarray(keys), np.ascontiguousarray(values)
        link.post(Write(session_id, layer, start, *rows))


def gather(link: Link, session_id: int, layer: int, blocks: Int32, out: Storage, slots: Int32) -> None:
    """Copies blocks into `out[slots]`, [num_slots, 2, Hkv, B, D] of storage type."""
    if link.shard is not None:
        link.shard.gather(session_id, layer, blocks, out, slots)
    else:
        out[slots] = link.call(CopyBlocks(session_id, layer, blocks))


class LocalLink:
    """A store in the same process and thread."""

    def __init__(self, store: KvStore) -> None:
        self._dispatch = Dispatch(store)
        self.shard: MappedShard | None = store.shard
        self.scores_here = False

    def call(self, operation: Operation[T]) -> T:
        """See Link."""
        return self._dispatch.call(operation)

    def submit(self, operation: Operation[T]) -> Callable[[], T]:
        """See Link; computes at once."""
        reply = self._dispatch.call(operation)
        return lambda: reply

    def post(self, *operations: Operation[Any]) -> None:
        """See Link; acts at once."""
        for operation in operations:
            self._dispatch.post(operation)

    def close(self) -> None:
        """The store belongs to whoever made it, and stays."""
