"""A link with a method for each operation, so that tests read as what is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from moorage.workers.kv import operations as ops
from moorage.workers.kv.link import Link, gather, write_rows
from moorage.workers.kv.messages import AnchorRotation, SelectReply, SelectRequest, StoreStats


class Asker:
    def __init__(self, link: Link) -> None:
        self.link = link
        self.pid: int = getattr(link, "pid", 0)

    def open(self, session_id: int, num_blocks: int, rotation: AnchorRotation | None = None) -> None:
        self.link.call(ops.Open(session_id, num_blocks, rotation))

    def resize(self, session_id: int, num_blocks: int) -> None:
        self.link.call(ops.Resize(session_id, num_blocks))

    def attach(self, session_id: int) -> int:
        """The tokens that every layer holds."""
        return int(self.link.call(ops.Attach(session_id)).num_tokens.min())

    def write(self, session_id: int, layer: int, start: int, keys: np.ndarray, values: np.ndarray) -> None:
        write_rows(self.link, session_id, layer, start, keys, values)

    def commit(self, session_id: int, layer: int, start: int, end: int) -> None:
        self.link.post(ops.Commit(session_id, layer, start, end))

    def truncate(self, session_id: int, num_tokens: int) -> None:
        self.link.call(ops.Truncate(session_id, num_tokens))

    def submit_select(self, request: SelectRequest) -> Callable[[], SelectReply]:
        return self.link.submit(ops.Select(request))

    def submit_together(self, requests: Sequence[SelectRequest]) -> Callable[[], list[SelectReply]]:
        return self.link.submit(ops.SelectTogether(list(requests)))

    def submit_score(self, request: SelectRequest) -> Callable[[], Any]:
        return self.link.submit(ops.Score(request))

    def submit_choose(self, session_id: int, lse: np.ndarray) -> Callable[[], SelectReply]:
        return self.link.submit(ops.SelectScored(session_id, lse))

    def preselect(self, session_id: int, layer: int, blocks: np.ndarray, limit: int) -> None:
        self.link.call(ops.Preselect(session_id, layer, blocks, limit))

    def rebuild_anchors(self, session_id: int, layer: int, first: int, importance: np.ndarray) -> None:
        self.link.call(ops.RebuildAnchors(session_id, layer, first, importance))

    def gather(self, session_id: int, layer: int, blocks: np.ndarray, out: Any, slots: np.ndarray) -> None:
        gather(self.link, session_id, layer, blocks, out, slots)

    def drop(self, session_id: int) -> None:
        self.link.call(ops.Drop(session_id))

    def stats(self) -> StoreStats:
        return self.link.call(ops.Stats())

    def close(self) -> None:
        self.link.close()
