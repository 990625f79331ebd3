"""How a worker reaches one KV store: the interface, and its form inside one process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from numpy.typing import ArrayLike

from moorage.workers.errors import MoorageError
from moorage.workers.kv.arena import Arena
from moorage.workers.kv.mapped_shard import MappedShard
from moorage.workers.kv.messages import (
    AnchorRotation,
    Float32,
    Int32,
    SelectReply,
    SelectRequest,
    Storage,
    StoreStats,
)
from moorage.workers.kv.store import KvStore


class Link(Protocol):
    """One worker's way to one KV store. Ids and positions are those of the shard; `KvStore` says more.

    A link serves one thread. `submit_*` return at once, so that several shards work at the same time; one
    submission may be open on a link. An error in `commit` may come with a later call for its
    session. Every method raises
    PeerDead when the store's process is gone.
    """

    scores_here: bool
    """Whether selections run in this process where it maps the store's memory; set before the first session."""

    @property
    def shard(self) -> MappedShard | None:
        """The sessions in this process's own view of the store's memory; None where it maps none."""

    def open(self, session_id: int, num_blocks: int, rotation: AnchorRotation | None = None) -> None:
        """Reserves pages. If StoreFull or InvalidRequest is raised, nothing has changed."""

    def resize(self, session_id: int, num_blocks: int) -> None:
        """Grows a session, or gives back its unwritten end. If StoreFull is raised, nothing has changed."""

    def attach(self, session_id: int) -> int:
        """Takes over a session that another link opened; returns the tokens it holds in every layer."""

    def write(self, session_id: int, layer: int, start: int, keys: ArrayLike, values: ArrayLike) -> None:
        """Stores rows [T, Hkv, D] from token `start` on; they count once they are committed."""

    def commit(self, session_id: int, layer: int, start: int, end: int) -> None:
        """Rows [start, end) are complete. Takes effect before anything that this link asks later."""

    def commit_rows(self, rows: Sequence[tuple[int, int]]) -> dict[int, MoorageError]:
        """The rows (session, position) are complete in all layers.

        Where that fills a block, it waits until the store has sealed it, and returns by session why commits failed.
        """

    def confirm(self, session_id: int) -> None:
        """Waits until all that was committed is sealed. Raises what a commit of the session failed with."""

    def truncate(self, session_id: int, num_tokens: int) -> None:
        """Forgets the tokens after the first `num_tokens`."""

    def submit_select(self, request: SelectRequest) -> Callable[[], SelectReply]:
        """Asks for the best blocks of this shard alone."""

    def submit_together(self, requests: Sequence[SelectRequest]) -> Callable[[], list[SelectReply]]:
        """Asks for the best blocks of at least one request each of some sessions; all fail if one does."""

    def submit_score(self, request: SelectRequest) -> Callable[[], Float32]:
        """Asks for [R, Hq] log-sum-exp; the store keeps the logits for `submit_choose`."""

    def submit_choose(self, session_id: int, lse: Float32) -> Callable[[], SelectReply]:
        """Asks for the best blocks, given the log-sum-exp over all shards."""

    def keep(self, session_id: int, layer: int, blocks: Int32, limit: int) -> None:
        """Restricts later selections with `use_preselected`: of the blocks before `limit`, to `blocks`."""

    def rebuild_anchors(self, session_id: int, layer: int, first: int, importance: Float32) -> None:
        """Makes anchors of sealed blocks from `first` on, given their keys' importance [n, Hkv, B]."""

    def gather(self, session_id: int, layer: int, blocks: Int32, out: Storage, slots: Int32) -> None:
        """Copies blocks into `out[slots]`; out is [num_slots, 2, Hkv, B, D] of storage type."""

    def locate(self, session_id: int, layer: int, blocks: Int32) -> tuple[Arena, Int32] | None:
        """The arena in this process's memory and the pages of `blocks` in it; None where there is none."""

    def pages(self, session_id: int) -> tuple[Arena, Int32] | None:
        """The arena in this process's memory and all pages of a session; None where there is none."""

    def arena(self) -> Arena | None:
        """The store's arena in this process's memory; None where there is none."""

    def drop(self, session_id: int) -> None:
        """Frees a session. Idempotent."""

    def stats(self) -> StoreStats:
        """Counts and bytes."""

    def close(self) -> None:
        """Ends the link; the sessions stay. Idempotent."""


class LocalLink:
    """A store in the same process and thread."""

    def __init__(self, store: KvStore) -> None:
        self._store, self.shard = store, store.shard
        self.scores_here = False
        self.write = store.write
        self.commit = store.commit
        self.truncate = store.truncate
        self.keep = store.keep
        self.rebuild_anchors = store.rebuild_anchors
        self.gather = store.gather
        self.locate = store.locate
        self.pages = store.pages
        self.drop = store.drop
        self.stats = store.stats

    def arena(self) -> Arena:
        """As `KvStore.arena`."""
        return self._store.arena

    def open(self, session_id: int, num_blocks: int, rotation: AnchorRotation | None = None) -> None:
        """As `KvStore.open`."""
        self._store.open(session_id, num_blocks, rotation)

    def resize(self, session_id: int, num_blocks: int) -> None:
        """As `KvStore.resize`."""
        self._store.resize(session_id, num_blocks)

    def attach(self, session_id: int) -> int:
        """As `KvStore.attach`."""
        return min(self._store.attach(session_id)[1])

    def commit_rows(self, rows: Sequence[tuple[int, int]]) -> dict[int, MoorageError]:
        """As `Link.commit_rows`."""
        failed: dict[int, MoorageError] = {}
        for session_id, position in rows:
            try:
                self._store.commit_row(session_id, position)
            except MoorageError as error:
                failed[session_id] = error
        return failed

    def confirm(self, session_id: int) -> None:
        """Nothing is under way."""

    def submit_select(self, request: SelectRequest) -> Callable[[], SelectReply]:
        """Computes at once."""
        reply = self._store.select(request)
        return lambda: reply

    def submit_together(self, requests: Sequence[SelectRequest]) -> Callable[[], list[SelectReply]]:
        """Computes at once."""
        replies = self._store.select_together(requests)
        return lambda: replies

    def submit_score(self, request: SelectRequest) -> Callable[[], Float32]:
        """Computes at once."""
        lse = self._store.score(request)
        return lambda: lse

    def submit_choose(self, session_id: int, lse: Float32) -> Callable[[], SelectReply]:
        """Computes at once."""
        reply = self._store.choose(session_id, lse)
        return lambda: reply

    def close(self) -> None:
        """The store belongs to whoever made it, and stays."""
