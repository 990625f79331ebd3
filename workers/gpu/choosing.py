"""Which distant blocks a query attends: asks the shards, and reuses earlier choices where configured."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from moorage.workers.gpu.model.rope import rotate
from moorage.workers.gpu.positions import Span
from moorage.workers.gpu.session import Choice, WorkerSession
from moorage.workers.gpu.timing import PartTimer
from moorage.workers.kv.messages import Pooling
from moorage.workers.kv.shards import ShardedKv
from moorage.workers.spec import HeadSelectMode, KvLayout, MemorySpec

Int32 = NDArray[np.int32]

PRESELECT_QUERIES = 128
"""Last prompt queries that decide a preselection (the observation window of ktransformers and SnapKV)."""


class Chooser:
    """Chooses blocks for decode steps and for execution blocks of prefill."""

    def __init__(self, kv: ShardedKv, layout: KvLayout, timer: PartTimer) -> None:
        self._kv = kv
        self._layout = layout
        self._timer = timer

    def scoring_queries(self, session: WorkerSession, queries: torch.Tensor) -> torch.Tensor:
        """Queries as anchors are scored with, [n, Hq, D] fp32.

        Anchors summarise un-rotated keys. Under clamped positions these are the keys that attention will use,
        met by the query at the clamped position; under RoPE both sides stay un-rotated (as InfLLM scores).
        """
        queries = queries.float()
        if not session.rotations.clamped:
            return queries
        cos, sin = (torch.from_numpy(part).to(queries.device) for part in session.rotations.clamp)
        return rotate(queries, cos, sin)

    def for_decode(self, session: WorkerSession, layer: int, query: torch.Tensor) -> Int32 | None:
        """Ids [S, k] of the distant blocks for `query` [Hq, D]; None stands for all of them."""
        assert session.decode_step is not None
        span = session.decode_step.span
        memory = session.memory
        if memory.topk is None or layer < memory.dense_layer_num or span.num_candidates <= memory.topk:
            return None
        kept = self._kept_choice(session, layer)
        if kept is not None:
            return _with_aged_blocks(kept, span)
        scoring = self.scoring_queries(session, query[None])
        ids = self._select(
            session, layer, scoring, span.num_sinks, np.array([span.near_block], np.int32), True
        )
        choice = Choice(ids[0], session.decode_index, span.near_block)
        session.choices[layer] = choice
        return choice.ids

    def _kept_choice(self, session: WorkerSession, layer: int) -> Choice | None:
        """The choice that `layer_step` and `token_step` say to use again, if there is one."""
        memory = session.memory
        offset = (layer - memory.dense_layer_num) % memory.layer_step
        kept = session.choices.get(layer - offset)
        if kept is None:
            return None
        if offset:
            session.choices[layer] = kept
            return kept
        return kept if session.decode_index - kept.decode_step < memory.token_step else None

    def for_prefill(
        self, session: WorkerSession, layer: int, queries: torch.Tensor, spans: list[Span]
    ) -> list[Int32]:
        """Ids [S, k] for each execution block; `queries` [R, Hq, D] are their mean queries, un-rotated."""
        memory = session.memory
        assert memory.topk is not None
        num_rows = _choice_rows(memory, self._layout)
        chosen: list[Int32] = [np.tile(span.candidates, (num_rows, 1)) for span in spans]
        rows = [r for r, span in enumerate(spans) if span.num_candidates > memory.topk]
        if rows:
            scoring = self.scoring_queries(session, queries[rows])
            limits = np.array([spans[r].near_block for r in rows], np.int32)
            ids = self._select(session, layer, scoring, spans[rows[0]].num_sinks, limits, False)
            for row, row_ids in zip(rows, ids, strict=True):
                chosen[row] = row_ids
        return chosen

    def preselect(self, session: WorkerSession, layer: int, span: Span) -> None:
        """Restricts later decode steps of `layer` to the blocks that the prompt's last queries ask for."""
        queries = session.tail_queries.pop(layer)
        with self._timer("select"):
            self._kv.preselect(
                session.session_id,
                layer,
                self.scoring_queries(session, queries).cpu().numpy(),
                first=span.num_sinks,
                limit=span.near_block,
                count=session.memory.preselect_block_count,
                scale=self._scale(session),
            )

    def _select(
        self,
        session: WorkerSession,
        layer: int,
        queries: torch.Tensor,
        first: int,
        limits: Int32,
        in_decode: bool,
    ) -> Int32:
        memory = session.memory
        assert memory.topk is not None
        with self._timer("select"):
            ids, _ = self._kv.select(
                session.session_id,
                layer,
                queries.cpu().numpy(),
                first=first,
                limits=limits,
                k=memory.topk,
                shared=memory.head_select_mode is HeadSelectMode.SHARED,
                scale=self._scale(session),
                use_preselected=in_decode and memory.preselect_block,
                pooling=Pooling.SUM,
            )
        return ids

    def _scale(self, session: WorkerSession) -> float:
        return session.rotations.view.attention_scale**2 / math.sqrt(self._layout.head_dim)


def _choice_rows(memory: MemorySpec, layout: KvLayout) -> int:
    """Choices per step: one for all heads, or one for each KV head."""
    return 1 if memory.head_select_mode is HeadSelectMode.SHARED else layout.num_kv_heads


def _with_aged_blocks(kept: Choice, span: Span) -> Int32:
    """The kept ids and the blocks that have left the window since, so that no token falls between the two."""
    aged = np.arange(kept.near_block, span.near_block, dtype=np.int32)
    return np.concatenate((kept.ids, np.tile(aged, (len(kept.ids), 1))), axis=1)
