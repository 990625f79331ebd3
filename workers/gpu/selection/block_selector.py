"""Which distant blocks a query attends: asks the shards, and reuses earlier choices where configured."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import cache, partial

import numpy as np
import torch
from numpy.typing import NDArray

from moorage.kernels.rotation import rotate_heads
from moorage.workers.errors import MoorageError
from moorage.workers.gpu.engine.session_state import Choice, WorkerSession
from moorage.workers.gpu.engine.timing import PartTimer
from moorage.workers.gpu.model.rope import cos_sin, rotate
from moorage.workers.gpu.positions.rotary import BlockRanges
from moorage.workers.gpu.selection.asynchronous import last_choice, moved_rows, replace_rows, waits_for_query
from moorage.workers.gpu.selection.device_scorer import DeviceScorer, Trial
from moorage.workers.kv.messages import SelectRequest
from moorage.workers.kv.shards import ShardedKv
from moorage.workers.spec import HeadSelectMode, KvLayout, Preselect

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]


class BlockSelector:
    """Chooses blocks for decode steps and for execution blocks of prefill."""

    def __init__(
        self,
        kv: ShardedKv,
        layout: KvLayout,
        timer: PartTimer,
        scorer: DeviceScorer | None = None,
        trial: Trial | None = None,
    ) -> None:
        """`scorer` chooses for generated tokens where it can; with `trial` only while it is the faster way."""
        self.scorer = scorer
        self._trial = trial
        self._kv = kv
        self._layout = layout
        self._timer = timer

    def scoring_queries(self, session: WorkerSession, queries: torch.Tensor, start: int) -> torch.Tensor:
        """Queries [n, Hq, D], un-rotated and from position `start` on, as anchors are scored with, in fp32.

        Anchors of rotated keys are met by each query at its own position, as ktransformers does. Those of plain keys
        are met, under clamped positions, by the query at the clamped position, which is how attention will use these
        keys; under RoPE both sides stay un-rotated (as InfLLM scores).
        """
        queries = queries.float()
        if session.anchor_view is not None:
            positions = torch.arange(start, start + len(queries))
            cos, sin = (part.to(queries.device) for part in cos_sin(session.anchor_view, positions))
            return rotate(queries.transpose(0, 1), cos, sin).transpose(0, 1)
        if not session.rotations.clamped:
            return queries
        cos, sin = (torch.from_numpy(part).to(queries.device) for part in session.rotations.clamp)
        return rotate(queries, cos, sin)

    def for_decode(
        self, session: WorkerSession, layer: int, query: torch.Tensor, on_host: Callable[[], torch.Tensor]
    ) -> Int32 | None:
        """Ids [S, k] of the distant blocks for `query` [Hq, D]; None stands for all of them.

        `on_host` is called only when the shards are asked: on a GPU it waits for the device.
        """
        step = session.decode_step
        assert step is not None
        span = step.span
        if not _chooses(session, layer, span):
            return None
        if session.memory.selection.asynchronous:
            if layer not in step.chosen:
                self._choose_lagged(session, layer, on_host)
            return step.chosen[layer]
        kept = self._kept_choice(session, layer)
        if kept is not None:
            return _with_aged_blocks(kept, span)
        ids = self._choose(session, layer, span, query, on_host)
        session.choices[layer] = Choice(ids, session.decode_index, span.near_block)
        return ids

    def for_batch(self, layer: int, sessions: Sequence[WorkerSession], queries: torch.Tensor) -> None:
        """Chooses for all `sessions` that need it in one call; `for_decode` then finds what was chosen.

        queries [N, Hq, D], one for each session; those of sessions that decode no token are not looked at. Where one
        session fails nothing is chosen, and each finds its own failure when it asks alone.
        """
        self.catch_up_together(sessions, layer)
        rows = [i for i, session in enumerate(sessions) if self._asks_shards(session, layer)]
        if len(rows) < 2:
            return
        asking = []
        for row, query in zip(rows, queries[rows].cpu(), strict=True):
            session, known = sessions[row], cache(partial(self._scoring, sessions[row], query))
            if not (session.memory.selection.asynchronous and self._stays(session, layer, known)):
                asking.append((session, layer, known()))
        if len(asking) < 2:
            return
        for (session, _, scoring), ids in zip(asking, self._ask_together(asking), strict=False):
            self._settle(session, layer, scoring, ids)

    def catch_up(self, session: WorkerSession, until: int | None = None) -> None:
        """Makes the choices for the next step that are still behind, those of layers before `until` or of all.

        Raises what the shards fail with, which may be what became of the session's rows.
        """
        step = session.decode_step
        assert step is not None
        for layer in _behind(session, until):
            scoring = step.behind.pop(layer)()
            self._keep(session, layer, scoring, self._from_shards(session, layer, scoring))

    def catch_up_together(self, sessions: Sequence[WorkerSession], until: int | None = None) -> None:
        """`catch_up` in one call, where more than one session is behind.

        Where one fails nothing is kept: the next step then chooses at once, and each finds its own failure.
        """
        late = [session for session in sessions if _behind(session, until)]
        if len(late) < 2:
            return
        asking = []
        for session in late:
            assert session.decode_step is not None
            for layer in _behind(session, until):
                asking.append((session, layer, session.decode_step.behind.pop(layer)()))
        for (session, layer, scoring), ids in zip(asking, self._ask_together(asking), strict=False):
            self._keep(session, layer, scoring, ids)

    def _ask_together(self, asking: Sequence[tuple[WorkerSession, int, Float32]]) -> list[Int32]:
        """Ids [S, k] for each (session, layer, scoring query [1, Hq, D]).

        None at all where one of them fails or takes two questions.
        """
        requests = [self._request(*one) for one in asking]
        if not all(self._kv.answers_together(request.pooling) for request in requests):
            return []
        try:
            with self._timer("select"):
                return [ids[0] for ids in self._kv.select_together(requests)]
        except MoorageError:
            return []

    def _choose_lagged(self, session: WorkerSession, layer: int, on_host: Callable[[], torch.Tensor]) -> None:
        """Settles what this step attends in `layer`."""
        step = session.decode_step
        assert step is not None
        scoring = cache(lambda: self._scoring(session, on_host()))
        if not self._stays(session, layer, scoring):
            self._settle(session, layer, scoring(), self._from_shards(session, layer, scoring()))

    def _stays(self, session: WorkerSession, layer: int, scoring: Callable[[], Float32]) -> bool:
        """Whether the last step's choice is attended as it is; the next step's is then made behind."""
        last, step = last_choice(session, layer), session.decode_step
        cosine = session.memory.selection.asynchronous_cosine
        assert step is not None
        if last is None:
            return False
        if waits_for_query(session, layer) and moved_rows(last, scoring(), cosine).any():
            return False
        step.chosen[layer] = _with_aged_blocks(last, step.span)
        step.behind[layer] = scoring
        return True

    def _settle(self, session: WorkerSession, layer: int, scoring: Float32, ids: Int32) -> None:
        """Takes a choice [S, k] by this step's query: for heads that moved, or for all of them."""
        step, memory = session.decode_step, session.memory
        assert step is not None
        if memory.selection.asynchronous:
            last = last_choice(session, layer)
            step.chosen[layer] = ids
            if last is not None:
                moved = moved_rows(last, scoring, memory.selection.asynchronous_cosine)
                step.chosen[layer] = replace_rows(_with_aged_blocks(last, step.span), ids, moved)
                session.stats.num_corrected += 1
        self._keep(session, layer, scoring, ids)

    def _keep(self, session: WorkerSession, layer: int, scoring: Float32, ids: Int32) -> None:
        assert session.decode_step is not None
        # a copy, not a view of all that a layer computed
        query = scoring.copy() if session.memory.selection.asynchronous else None
        near_block = session.decode_step.span.near_block
        session.choices[layer] = Choice(ids, session.decode_index, near_block, query)

    def _asks_shards(self, session: WorkerSession, layer: int) -> bool:
        """Whether the next token of a session needs a choice in one pass that the shards make."""
        if session.decode_step is None or not _chooses(session, layer, session.decode_step.span):
            return False
        if session.memory.selection.asynchronous:
            return layer not in session.decode_step.chosen and waits_for_query(session, layer)
        on_device = self.scorer is not None and self.scorer.holds(session.session_id)
        two_passes = session.memory.selection.preselect is Preselect.STEP
        return not (on_device or two_passes) and self._kept_choice(session, layer) is None

    def _request(self, session: WorkerSession, layer: int, scoring: Float32) -> SelectRequest:
        """That of the current decode step."""
        step = session.decode_step
        assert step is not None
        preselected = session.memory.selection.preselect is Preselect.PROMPT
        return self._asked(session, layer, scoring, step.span.num_sinks, step.limits, preselected)

    def _asked(
        self,
        session: WorkerSession,
        layer: int,
        queries: Float32,
        first: int,
        limits: Int32,
        preselected: bool,
    ) -> SelectRequest:
        selection = session.memory.selection
        assert selection.topk is not None
        mode = selection.head_select_mode
        shared = mode is HeadSelectMode.SHARED
        return SelectRequest(
            session.session_id, layer, queries, first, limits, selection.topk, shared, self._scale(session),
            preselected, selection.head_pool, selection.anchor_pool, mode is HeadSelectMode.PERHEAD,
        )  # fmt: skip

    def _choose(
        self,
        session: WorkerSession,
        layer: int,
        span: BlockRanges,
        query: torch.Tensor,
        on_host: Callable[[], torch.Tensor],
    ) -> Int32:
        """Ids [S, k], by the shards or on the device."""
        if self.scorer is None or not self.scorer.holds(session.session_id):
            return self._from_shards(session, layer, self._scoring(session, on_host()))
        way = 1 if self._trial is None else self._trial.turn()
        started = time.perf_counter()
        ids = self._on_device(session, layer, span, query) if way else None
        if ids is None:
            ids = self._from_shards(session, layer, self._scoring(session, on_host()))
        if self._trial is not None:
            self._trial.note(way, time.perf_counter() - started)
        return ids

    def _from_shards(self, session: WorkerSession, layer: int, scoring: Float32) -> Int32:
        chosen: Int32 = self._select(session, self._request(session, layer, scoring))[0]
        return chosen

    def _on_device(
        self, session: WorkerSession, layer: int, span: BlockRanges, query: torch.Tensor
    ) -> Int32 | None:
        assert self.scorer is not None
        with self._timer("select"):
            return self.scorer.select(
                session.session_id,
                layer,
                self.scoring_queries(session, query[None], span.position)[0],
                first=span.num_sinks,
                limit=span.near_block,
                memory=session.memory,
                scale=self._scale(session),
            )

    def _scoring(self, session: WorkerSession, query: torch.Tensor) -> Float32:
        """`scoring_queries` [1, Hq, D] of the step's query [Hq, D] on the host."""
        if session.anchor_view is not None:
            assert session.decode_step is not None
            position = session.decode_step.span.position
            return np.asarray(self.scoring_queries(session, query[None], position).numpy())
        heads: Float32 = query.float().numpy()
        if session.rotations.clamped:
            cos, sin = session.rotations.clamp
            heads = rotate_heads(heads, cos[0], sin[0])
        return np.ascontiguousarray(heads[None])

    def _kept_choice(self, session: WorkerSession, layer: int) -> Choice | None:
        """The choice that `layer_step` and `token_step` say to use again, if there is one."""
        memory = session.memory
        offset = (layer - memory.selection.dense_layers) % memory.selection.layer_step
        kept = session.choices.get(layer - offset)
        if kept is None:
            return None
        if offset:
            session.choices[layer] = kept
            return kept
        return kept if session.decode_index - kept.decode_step < memory.selection.token_step else None

    def for_prefill(
        self, session: WorkerSession, layer: int, queries: torch.Tensor, spans: list[BlockRanges]
    ) -> list[Int32]:
        """Ids [S, k] for each execution block; `queries` [R, Hq, D] are the means of their scoring queries."""
        memory = session.memory
        assert memory.selection.topk is not None
        num_rows = memory.selection.head_select_mode.num_choices(queries.shape[1], self._layout.num_kv_heads)
        chosen: list[Int32] = [np.tile(span.candidates, (num_rows, 1)) for span in spans]
        rows = [r for r, span in enumerate(spans) if span.num_candidates > memory.selection.topk]
        if rows:
            limits = np.array([spans[r].near_block for r in rows], np.int32)
            means = queries[rows].cpu().numpy()
            request = self._asked(session, layer, means, spans[rows[0]].num_sinks, limits, False)
            ids = self._select(session, request)
            for row, row_ids in zip(rows, ids, strict=True):
                chosen[row] = row_ids
        return chosen

    def _select(self, session: WorkerSession, request: SelectRequest) -> Int32:
        memory = session.memory
        coarse = memory.selection.preselect_blocks if memory.selection.preselect is Preselect.STEP else 0
        with self._timer("select"):
            return self._kv.select(request, coarse).ids

    def _scale(self, session: WorkerSession) -> float:
        return session.rotations.view.attention_scale**2 / math.sqrt(self._layout.head_dim)


def _chooses(session: WorkerSession, layer: int, span: BlockRanges) -> bool:
    """Whether some of the candidates are chosen; otherwise all of them are attended."""
    memory = session.memory
    if (
        not memory.selection.topk
        or layer < memory.selection.dense_layers
        or span.num_candidates <= memory.selection.topk
    ):
        return False
    return session.num_tokens >= memory.selection.dense_until


def _behind(session: WorkerSession, until: int | None) -> list[int]:
    """Layers before `until`, or all, whose choice for the next step is still to be made."""
    behind = session.decode_step.behind if session.decode_step is not None else {}
    return [layer for layer in behind if until is None or layer < until]


def _with_aged_blocks(kept: Choice, span: BlockRanges) -> Int32:
    """The kept ids and the blocks that have left the window since, so that no token falls between the two.

    Those come first, since ids may be padded at their end.
    """
    if kept.near_block == span.near_block:
        return kept.ids
    aged = np.arange(kept.near_block, span.near_block, dtype=np.int32)
    return np.concatenate((np.tile(aged, (len(kept.ids), 1)), kept.ids), axis=1)
