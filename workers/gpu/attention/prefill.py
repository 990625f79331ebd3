"""Prefill: the chunks of some prompts are stored, and attend their past and themselves."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from moorage.workers.gpu.attention.chunk import ChunkAttention
from moorage.workers.gpu.attention.row_writer import RowWriter, finite_rows
from moorage.workers.gpu.engine.batch import PrefillBatch
from moorage.workers.gpu.engine.session_state import WorkerSession
from moorage.workers.gpu.selection.key_importance import KeyImportance
from moorage.workers.gpu.transfer.block_loader import storage_dtype
from moorage.workers.gpu.transfer.host_copy import HostCopy
from moorage.workers.spec import KvLayout


@dataclass(frozen=True, slots=True)
class PrefillMetadata:
    """What the layers of one step share."""

    batch: PrefillBatch


class PrefillAttention:
    """One chunk after the other."""

    def __init__(
        self, attend: ChunkAttention, writer: RowWriter, importance: KeyImportance, layout: KvLayout
    ) -> None:
        self._attend, self._writer, self._importance, self._layout = attend, writer, importance, layout
        self._storage = storage_dtype(layout.kv_type)

    def prepare(self, batch: PrefillBatch) -> PrefillMetadata:
        """See AttentionBackend."""
        return PrefillMetadata(batch)

    def forward(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, metadata: PrefillMetadata
    ) -> torch.Tensor:
        """See AttentionBackend."""
        batch, out = metadata.batch, q.new_zeros(q.shape)
        for session, begin, end in zip(batch.sessions, batch.bounds, batch.bounds[1:], strict=False):
            rows = slice(begin, end)

            def attend(session: WorkerSession = session, rows: slice = rows) -> None:
                with finite_rows(layer, k[rows], v[rows]):
                    out[rows] = self._chunk(session, layer, q[rows], k[rows], v[rows]).to(out.dtype)

            batch.guard.run(session, attend)
        return out

    def finish(self, metadata: PrefillMetadata) -> None:
        """Nothing is left open."""

    def _chunk(
        self, session: WorkerSession, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> torch.Tensor:
        """Output [T, Hq, D] for q [T, Hq, D] and k, v [T, Hkv, D], from the session's end on."""
        # Rounded once to the stored type, so that results do not depend on where a chunk ends.
        keys, values = k.to(self._storage), v.to(self._storage)
        # A chunk that selects may select blocks of its own, which must be sealed.
        axes = session.memory.selection
        exact = axes.execution_block == 0 or not axes.topk_of_prefill
        first, size = session.num_tokens, self._layout.block_size
        rows, late = HostCopy(keys, values), self._writer.stores_late and exact
        before = self._attend.open_rows(session, layer)
        if not late:
            self._writer.append(session, layer, first, *rows())
        session.cache.invalidate(layer, first // size, self._layout.num_blocks(first + len(keys)))
        out = self._attend(session, layer, q, keys, values, before)
        if late:
            self._writer.append(session, layer, first, *rows())
        if self._importance.wants_tail(session):
            self._keep_tail(session, layer, q)
        return out

    def _keep_tail(self, session: WorkerSession, layer: int, queries: torch.Tensor) -> None:
        """Keeps the prompt's last queries; after the last chunk they tell which keys matter."""
        kept = session.tail_queries.get(layer)
        joined = queries if kept is None else torch.cat((kept, queries))
        tail = joined[-session.memory.selection.importance_queries :]
        # A copy, since the next step overwrites the queries of this one.
        session.tail_queries[layer] = tail.to(torch.float32, copy=True)
        if session.num_tokens + len(queries) >= session.prompt_tokens:
            self._importance.finish_prompt(session, layer, session.tail_queries.pop(layer))
