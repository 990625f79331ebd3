"""A link to a KV actor of another host, by Ray calls. Arrays travel as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import ray
from numpy.typing import ArrayLike

from moorage.workers.errors import MoorageError, PeerDead
from moorage.workers.kv.messages import (
    AnchorRotation,
    Float32,
    Int32,
    SelectReply,
    SelectRequest,
    Storage,
    StoreStats,
)
from moorage.workers.spec import KvLayout

_MAX_UNCONFIRMED = 64
"""Writes and commits of one session that may be under way; more would only fill Ray's object store."""


class RayLink:
    """A `Link` over the methods of a KvActor handle. Ray keeps the calls of one link in order."""

    shard = None
    """The store's memory lies on another host."""

    def __init__(self, handle: Any, layout: KvLayout, *, timeout_s: float = 60.0) -> None:
        self._handle, self.layout, self._timeout_s = handle, layout, timeout_s
        self.scores_here = False
        self._unconfirmed: dict[int, list[Any]] = {}

    def open(self, session_id: int, num_blocks: int, rotation: AnchorRotation | None = None) -> None:
        """As `KvStore.open`."""
        self._get(session_id, self._handle.open.remote(session_id, num_blocks, rotation))

    def resize(self, session_id: int, num_blocks: int) -> None:
        """As `KvStore.resize`."""
        self._get(session_id, self._handle.resize.remote(session_id, num_blocks))

    def attach(self, session_id: int) -> int:
        """As `KvStore.attach`; returns the tokens that every layer holds."""
        return int(self._get(session_id, self._handle.attach.remote(session_id)))

    def write(self, session_id: int, layer: int, start: int, keys: ArrayLike, values: ArrayLike) -> None:
        """As `KvStore.write`, without waiting."""
        rows = (np.ascontiguousarray(keys), np.ascontiguousarray(values))
        self._begin(session_id, self._handle.write.remote(session_id, layer, start, *rows))

    def commit(self, session_id: int, layer: int, start: int, end: int) -> None:
        """As `KvStore.commit`, without waiting; its error comes with a later call for the session."""
        self._begin(session_id, self._handle.commit.remote(session_id, layer, start, end))

    def commit_rows(self, rows: Sequence[tuple[int, int]]) -> dict[int, MoorageError]:
        """As `Link.commit_rows`, without waiting; errors come with later calls for the sessions."""
        for session_id, position in rows:
            for layer in range(self.layout.num_layers):
                self.commit(session_id, layer, position, position + 1)
        return {}

    def confirm(self, session_id: int) -> None:
        """As `Link.confirm`."""
        self._confirm(session_id)

    def truncate(self, session_id: int, num_tokens: int) -> None:
        """As `KvStore.truncate`."""
        self._get(session_id, self._handle.truncate.remote(session_id, num_tokens))

    def submit_select(self, request: SelectRequest) -> Callable[[], SelectReply]:
        """As `KvStore.select`."""
        return self._submit(request.session_id, self._handle.select.remote(request))

    def submit_together(self, requests: Sequence[SelectRequest]) -> Callable[[], list[SelectReply]]:
        """As `KvStore.select_together`."""
        call = self._handle.select_together.remote(list(requests))
        return lambda: self._wait(call)

    def submit_score(self, request: SelectRequest) -> Callable[[], Float32]:
        """As `KvStore.score`."""
        return self._submit(request.session_id, self._handle.score.remote(request))

    def submit_choose(self, session_id: int, lse: Float32) -> Callable[[], SelectReply]:
        """As `KvStore.choose`."""
        return self._submit(session_id, self._handle.choose.remote(session_id, lse))

    def keep(self, session_id: int, layer: int, blocks: Int32, limit: int) -> None:
        """As `KvStore.keep`."""
        self._get(session_id, self._handle.keep.remote(session_id, layer, blocks, limit))

    def rebuild_anchors(self, session_id: int, layer: int, first: int, importance: Float32) -> None:
        """As `KvStore.rebuild_anchors`."""
        rows = np.ascontiguousarray(importance)
        self._get(session_id, self._handle.rebuild_anchors.remote(session_id, layer, first, rows))

    def gather(self, session_id: int, layer: int, blocks: Int32, out: Storage, slots: Int32) -> None:
        """As `KvStore.gather`."""
        out[slots] = self._get(session_id, self._handle.gather.remote(session_id, layer, blocks))

    def locate(self, session_id: int, layer: int, blocks: Int32) -> None:
        """None: the blocks lie on another host."""
        del session_id, layer, blocks

    def pages(self, session_id: int) -> None:
        """None: the arena lies on another host."""
        del session_id

    def arena(self) -> None:
        """None: the arena lies on another host."""

    def drop(self, session_id: int) -> None:
        """As `KvStore.drop`."""
        self._unconfirmed.pop(session_id, None)
        self._wait(self._handle.drop.remote(session_id))

    def stats(self) -> StoreStats:
        """As `KvStore.stats`."""
        stats: StoreStats = self._wait(self._handle.stats.remote())
        return stats

    def close(self) -> None:
        """Ends the link; the sessions stay. Idempotent."""
        self._unconfirmed.clear()

    def _begin(self, session_id: int, call: Any) -> None:
        calls = self._unconfirmed.setdefault(session_id, [])
        calls.append(call)
        if len(calls) >= _MAX_UNCONFIRMED:
            self._confirm(session_id)

    def _confirm(self, session_id: int) -> None:
        for call in self._unconfirmed.pop(session_id, ()):
            self._wait(call)

    def _submit(self, session_id: int, call: Any) -> Callable[[], Any]:
        return lambda: self._get(session_id, call)

    def _get(self, session_id: int, call: Any) -> Any:
        self._confirm(session_id)
        return self._wait(call)

    def _wait(self, call: Any) -> Any:
        try:
            return ray.get(call, timeout=self._timeout_s)
        except ray.exceptions.RayTaskError as error:
            # Ray adds a remote traceback to the message; the cause is the error as the store raised it.
            if isinstance(error.cause, MoorageError):
                raise error.cause from None
            raise
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
            reason = str(error).partition("\n")[0]
            raise PeerDead(f"KV actor: {reason}; its sessions are lost; start the cluster again") from error
