"""Which distant blocks the tokens that are generated attend: the interface, and its form that asks the stores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from moorage.workers.errors import MoorageError
from moorage.workers.gpu.engine.batch import DecodeStep, SessionGuard
from moorage.workers.gpu.engine.session_state import WorkerSession
from moorage.workers.gpu.engine.timing import PartTimer
from moorage.workers.gpu.positions.rotary import BlockRanges
from moorage.workers.gpu.selection.queries import LayerQueries, attention_scale, scoring_query
from moorage.workers.kv.messages import SelectRequest
from moorage.workers.kv.shards import ShardedKv
from moorage.workers.spec import HeadSelectMode, KvLayout, Preselect

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]
Selection = Int32 | None
"""Ids [S, k] of the distant blocks that one session attends in a layer, padded at the end with -1; None is all."""


class BlockSelector(Protocol):
    """Selects blocks for all sessions of a batch. Policies wrap each other around `StoreSelector`."""

    def select(
        self, layer: int, queries: LayerQueries, steps: Sequence[DecodeStep], guard: SessionGuard
    ) -> list[Selection]:
        """A selection for each of `steps`; that of a session that fails, as `guard` then records, means nothing."""


class StoreSelector:
    """Asks the stores, in one call for all sessions where that is possible."""

    def __init__(self, kv: ShardedKv, layout: KvLayout, timer: PartTimer) -> None:
        self._kv, self._layout, self._timer = kv, layout, timer

    def select(
        self, layer: int, queries: LayerQueries, steps: Sequence[DecodeStep], guard: SessionGuard
    ) -> list[Selection]:
        """See BlockSelector."""
        if not steps:
            return []
        rows = queries.on_host()
        requests = [
            self._request(
                step, layer, scoring_query(step.session, layer, rows[step.row], step.ranges.position)
            )
            for step in steps
        ]
        found = self._together(steps, requests)
        return [
            found[i] if i in found else self._alone(step, request, guard)
            for i, (step, request) in enumerate(zip(steps, requests, strict=True))
        ]

    def _together(self, steps: Sequence[DecodeStep], requests: Sequence[SelectRequest]) -> dict[int, Int32]:
        """Ids by place, by one question to each store, of those that one question answers.

        Empty where there are fewer than two, and where a session fails: each finds its own failure alone.
        """
        once = [i for i, step in enumerate(steps) if self._kv.answers_together(step.selection.head_pool)]
        if len(once) < 2:
            return {}
        try:
            with self._timer("select"):
                answers = self._kv.select_together([requests[i] for i in once])
        except MoorageError:
            return {}
        return {i: ids[0] for i, ids in zip(once, answers, strict=True)}

    def prefill(
        self, session: WorkerSession, layer: int, queries: torch.Tensor, spans: list[BlockRanges]
    ) -> list[Int32]:
        """Ids [S, k] for each execution block; `queries` [R, Hq, D] are the means of their scoring queries."""
        axes = session.memory.selection
        num_rows = axes.head_select_mode.num_selections(queries.shape[1], self._layout.num_kv_heads)
        selected: list[Int32] = [np.tile(span.candidates, (num_rows, 1)) for span in spans]
        topk = axes.topk_of_prefill
        rows = [r for r, span in enumerate(spans) if span.num_candidates > topk]
        if rows:
            limits = np.array([spans[r].near_block for r in rows], np.int32)
            means = queries[rows].cpu().numpy()
            request = self._of(session, layer, means, spans[rows[0]].num_sinks, limits, topk, False)
            for row, ids in zip(rows, self._ids(request), strict=True):
                selected[row] = ids
        return selected

    def _alone(self, step: DecodeStep, request: SelectRequest, guard: SessionGuard) -> Selection:
        found: list[Int32] = []
        guard.run(step.session, lambda: found.append(self._ids(request)[0]))
        return found[0] if found else None

    def _ids(self, request: SelectRequest) -> Int32:
        with self._timer("select"):
            return self._kv.select(request).ids

    def _request(self, step: DecodeStep, layer: int, scoring: Float32) -> SelectRequest:
        preselected = step.selection.preselect is Preselect.PROMPT
        topk = step.session.memory.selection.topk or 0
        return self._of(step.session, layer, scoring, step.ranges.num_sinks, step.limits, topk, preselected)

    def _of(
        self,
        session: WorkerSession,
        layer: int,
        queries: Float32,
        first: int,
        limits: Int32,
        topk: int,
        preselected: bool,
    ) -> SelectRequest:
        axes = session.memory.selection
        return SelectRequest(
            session.session_id,
            layer,
            queries,
            first,
            limits,
            topk,
            axes.head_select_mode is HeadSelectMode.SHARED,
            attention_scale(session, layer),
            preselected,
            axes.head_pool,
            axes.anchor_pool,
            axes.head_select_mode is HeadSelectMode.PERHEAD,
        )
