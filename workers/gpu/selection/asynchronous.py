"""Asynchronous selection: a step attends what the last step's query selected (`selection.asynchronous`)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from moorage.workers.gpu.engine.batch import DecodeStep, SessionGuard
from moorage.workers.gpu.engine.session_state import WorkerSession
from moorage.workers.gpu.selection.queries import LayerQueries, scoring_query
from moorage.workers.gpu.selection.reuse import with_aged_blocks
from moorage.workers.gpu.selection.selection_records import SelectionRecord
from moorage.workers.gpu.selection.selector import Selection, StoreSelector

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]

NEVER = -1.0
"""The threshold that no cosine is under, so that nobody waits for the query that would be compared."""


class AsynchronousSelector:
    """Puts off the selections of sessions that select asynchronously; `stores` makes them and all others.

    While the device computes a step, the stores make the selections of the next one. A head whose query has moved far
    from the last step's gets a selection by its own query at once.
    """

    def __init__(self, stores: StoreSelector) -> None:
        self._stores = stores

    def select(
        self, layer: int, queries: LayerQueries, steps: Sequence[DecodeStep], guard: SessionGuard
    ) -> list[Selection]:
        """See BlockSelector."""
        if not any(step.selection.asynchronous for step in steps):
            return self._stores.select(layer, queries, steps, guard)
        found: list[Selection] = [None] * len(steps)
        asking = []
        for i, step in enumerate(steps):
            if not step.selection.asynchronous or not self._keeps_last(step, layer, queries):
                query = scoring_query(step.session, layer, queries.on_host()[step.row], step.ranges.position)
                asking.append((i, query))
        asked = [(steps[i], layer, query) for i, query in asking]
        for (i, query), ids in zip(asking, self._stores.by_queries(asked, guard), strict=True):
            found[i] = ids
            if ids is not None and steps[i].selection.asynchronous:
                _adopt(steps[i], layer, query, ids)
        return [
            step.selected.get(layer) if step.selection.asynchronous else found[i]
            for i, step in enumerate(steps)
        ]

    def make_deferred(
        self, steps: Sequence[DecodeStep], guard: SessionGuard, until: int | None = None
    ) -> None:
        """Makes the selections for the next step that are still to be made, of layers before `until` or of all.

        Where the stores are asked for several sessions at once and one fails, none of these is kept: the next step
        then selects at once.
        """
        asking: list[tuple[DecodeStep, int, Float32]] = []
        for step in steps:
            for layer in [each for each in step.deferred if until is None or each < until]:
                query = step.deferred.pop(layer)
                if step.session.session_id not in guard.failed:
                    asking.append((step, layer, query()))
        together = [each for each in asking if self._stores.answers_together(each[0])]
        if len({step.session.session_id for step, _, _ in together}) > 1:
            for i, ids in self._stores.together(together).items():
                _keep(*together[i], ids)
            asking = [each for each in asking if not self._stores.answers_together(each[0])]
        for each, found in zip(asking, self._stores.by_queries(asking, guard), strict=True):
            if found is not None:
                _keep(*each, found)

    def _keeps_last(self, step: DecodeStep, layer: int, queries: LayerQueries) -> bool:
        """Whether the step attends the last step's selection as it is; that of the next step is then put off."""
        if layer in step.selected:
            return True

        row = step.row

        @cache
        def query() -> Float32:
            return scoring_query(step.session, layer, queries.on_host()[row], step.ranges.position)

        last = last_selection(step.session, layer)
        if last is None:
            return False
        if (
            waits_for_query(step.session, layer)
            and moved_rows(last, query(), step.selection.asynchronous_cosine).any()
        ):
            return False
        step.selected[layer] = with_aged_blocks(last.ids, last.near_block, step.ranges)
        step.deferred[layer] = query
        return True


def _adopt(step: DecodeStep, layer: int, query: Float32, ids: Int32) -> None:
    """Attends `ids` [S, k], selected by this step's query, with the heads that moved, or with all of them."""
    last = last_selection(step.session, layer)
    step.selected[layer] = ids
    if last is not None:
        moved = moved_rows(last, query, step.selection.asynchronous_cosine)
        step.selected[layer] = replace_rows(
            with_aged_blocks(last.ids, last.near_block, step.ranges), ids, moved
        )
        step.session.stats.num_corrected += 1
    _keep(step, layer, query, ids)


def _keep(step: DecodeStep, layer: int, query: Float32, ids: Int32) -> None:
    # A copy of the query, which may be a view of all that a layer computed.
    selection = SelectionRecord(ids, step.session.decode_index, step.ranges.near_block, query.copy())
    step.session.selections[layer] = selection


def last_selection(session: WorkerSession, layer: int) -> SelectionRecord | None:
    """The selection by the last step's query; None for the first step after a prompt, and where a step failed."""
    kept = session.selections.get(layer)
    return kept if kept is not None and kept.decode_step == session.decode_index - 1 else None


def waits_for_query(session: WorkerSession, layer: int) -> bool:
    """Whether this step's query has a say in what this step attends."""
    return session.memory.selection.asynchronous_cosine > NEVER or last_selection(session, layer) is None


def moved_rows(last: SelectionRecord, query: Float32, cosine: float) -> NDArray[np.bool_]:
    """[S]: whether a head that shares the selection has moved: its `query`, of [1, Hq, D], has a smaller cosine."""
    products = (query * last.query).sum(axis=-1)
    lengths = np.linalg.norm(query, axis=-1) * np.linalg.norm(last.query, axis=-1)
    moved: NDArray[np.bool_] = (products < cosine * lengths).reshape(len(last.ids), -1).any(axis=1)
    return moved


def replace_rows(kept: Int32, fresh: Int32, moved: NDArray[np.bool_]) -> Int32:
    """`kept` [S, n] with the `moved` [S] rows of `fresh` [S, k], k <= n, padded at the end with -1."""
    if moved.all():
        return fresh
    rows = kept.copy()
    rows[moved] = -1
    rows[moved, : fresh.shape[1]] = fresh[moved]
    return rows
