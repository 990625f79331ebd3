"""Scores candidates by their anchors, pools the heads and selects the best. Numba holds no state of any session."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moorage.kernels.block_score import score_blocks
from moorage.kernels.block_select import select_blocks, select_blocks_together
from moorage.kernels.pool_scores import pool_scores, score_lse
from moorage.kernels.top_blocks import top_blocks
from moorage.workers.errors import InvalidRequest
from moorage.workers.kv.arena import Arena
from moorage.workers.kv.buffers import Buffers
from moorage.workers.kv.candidates import Asked, Candidates, candidates_of
from moorage.workers.kv.faiss_scorer import FaissScorer
from moorage.workers.kv.messages import Float32, SelectReply, SelectRequest
from moorage.workers.spec import AnchorPool, HeadPool, Scorer


@dataclass(slots=True)
class Scoring:
    """Raw logits of one request's candidates, between `score` and `select_scored`."""

    request: SelectRequest
    candidates: Candidates
    logits: Float32
    """[R, Hq, n]"""


class BlockScorer:
    """The steps of a selection over one arena, on buffers that are used again."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._quest = arena.layout.anchor_type.bounds
        self._buffers = Buffers()
        self._faiss = None if arena.layout.scorer is Scorer.NUMBA else FaissScorer(arena)

    def select(self, asked: Asked) -> SelectReply:
        """The best candidates of this arena alone."""
        request, pages, num_sealed, preselection = asked
        if self._faiss is not None:
            self._check(request)
            allowed = None if preselection is None else preselection.until(num_sealed)
            return self._faiss.select(request, pages, num_sealed, allowed)
        if self._is_linear(request):
            return self._select_linear(asked)
        scoring = self.score(asked)
        reply = self.select_scored(
            scoring, self.lse(scoring) if request.pooling is HeadPool.SOFTMAX else None
        )
        self.release(scoring)
        return reply

    def select_together(self, asked: Sequence[Asked]) -> list[SelectReply]:
        """`select` for each of `asked`, in one call where they differ in sessions and queries alone."""
        first = asked[0].request
        alike = all(
            self._is_linear(one.request)
            and len(one.request.queries) == 1
            and one.request.queries.shape == first.queries.shape
            and (one.request.layer, one.request.k, one.request.shared) == (first.layer, first.k, first.shared)
            for one in asked
        )
        if self._faiss is not None or not alike:
            return [self.select(one) for one in asked]
        return self._select_linear_together(asked, first)

    def _is_linear(self, request: SelectRequest) -> bool:
        """Whether the scores of a block's heads are summed, so that one dot product gives the sum."""
        one_vector = self._arena.layout.anchor_num == 1 and not request.perhead
        return one_vector and request.pooling is HeadPool.SUM

    def _select_linear_together(self, asked: Sequence[Asked], first: SelectRequest) -> list[SelectReply]:
        layout, count = self._arena.layout, len(asked)
        for one in asked:
            self._check(one.request)
        found = [candidates_of(one) for one in asked]
        num_selections = first.num_selections(layout.num_kv_heads)
        ids = np.empty((count, num_selections, first.k), np.int32)
        scores = np.empty(ids.shape, np.float32)
        bounds = np.cumsum([0, *(len(each.pages) for each in found)], dtype=np.int32)
        select_blocks_together(
            self._arena.anchors[first.layer],
            np.concatenate([each.pages for each in found]),
            bounds,
            np.concatenate([one.request.queries for one in asked]),
            np.concatenate([each.limits for each in found]),
            quest=self._quest,
            scales=np.array([one.request.scale for one in asked], np.float32),
            firsts=np.array(
                [
                    one.request.first if each.ids is None else 0
                    for one, each in zip(asked, found, strict=True)
                ],
                np.int32,
            ),
            ids=ids,
            scores=scores,
            scratch=self._buffers.scratch(num_selections * int(bounds[-1])),
        )
        for i, each in enumerate(found):
            ids[i] = each.named(ids[i])
        return [SelectReply(ids[i : i + 1], scores[i : i + 1]) for i in range(count)]

    def _select_linear(self, asked: Asked) -> SelectReply:
        """Scores, pools and selects in one pass over the anchors."""
        request = asked.request
        rows, found = self._check(request), candidates_of(asked)
        num_selections = request.num_selections(self._arena.layout.num_kv_heads)
        ids = np.empty((rows, num_selections, request.k), np.int32)
        scores = np.empty(ids.shape, np.float32)
        select_blocks(
            self._arena.anchors[request.layer],
            found.pages,
            request.queries,
            found.limits,
            quest=self._quest,
            scale=request.scale,
            ids=ids,
            scores=scores,
            scratch=self._buffers.scratch(rows * num_selections * len(found.pages)),
            first=0 if found.ids is not None else request.first,
        )
        return SelectReply(found.named(ids), scores)

    def invalidate(self, session_id: int, layer: int | None = None) -> None:
        """Anchors of a session, or of one layer of it, are gone or have changed."""
        if self._faiss is not None:
            self._faiss.invalidate(session_id, layer)

    def score(self, asked: Asked) -> Scoring:
        """Logits of the candidates."""
        request = asked.request
        rows, found = self._check(request), candidates_of(asked)
        logits = self._buffers.borrow(rows, request.queries.shape[1], len(found.pages))
        if logits.size:
            anchors, add = self._arena.anchors[request.layer], request.anchor_pool is AnchorPool.SUM
            score_blocks(anchors, found.pages, request.queries, self._quest, logits, add=add)
        return Scoring(request, found, logits)

    def lse(self, scoring: Scoring) -> Float32:
        """[R, Hq]: log of the sum of exp(scale * logit) over each row's candidates; -inf without any."""
        shape = scoring.logits.shape[:2]
        if not scoring.logits.size:
            return np.full(shape, -np.inf, np.float32)
        out = np.empty(shape, np.float32)
        score_lse(scoring.logits, scoring.request.scale, scoring.candidates.limits, out)
        return out

    def select_scored(self, scoring: Scoring, lse: Float32 | None) -> SelectReply:
        """The best candidates; `lse` [R, Hq] over the blocks of all shards is needed for SOFTMAX only."""
        pooled = self._pool(scoring, lse)
        reply = _best(scoring.request, scoring.candidates, pooled)
        self._buffers.release(pooled)
        return reply

    def release(self, scoring: Scoring) -> None:
        """Frees the logits' memory; `scoring` must not be used again."""
        self._buffers.release(scoring.logits)

    def _pool(self, scoring: Scoring, lse: Float32 | None) -> Float32:
        rows, _, count = scoring.logits.shape
        num_selections = scoring.request.num_selections(self._arena.layout.num_kv_heads)
        pooled = self._buffers.borrow(rows, num_selections, count)
        request = scoring.request
        pool_scores(
            scoring.logits,
            num_selections,
            num_selections == 1,
            request.scale,
            scoring.candidates.limits,
            pooled,
            request.pooling.value,
            lse,
        )
        return pooled

    def _check(self, request: SelectRequest) -> int:
        """The rows of a request. Raises InvalidRequest where its arrays do not fit the layout."""
        layout, shape = self._arena.layout, request.queries.shape
        if len(shape) != 3 or shape[1] % layout.num_kv_heads or shape[2] != layout.head_dim:
            raise InvalidRequest(
                f"select: queries of shape {shape}; expected [rows, a multiple of {layout.num_kv_heads}, "
                f"{layout.head_dim}]"
            )
        if request.limits.shape != shape[:1] or request.first < 0 or request.k < 0:
            raise InvalidRequest(
                f"select: {request.limits.shape} limits for {shape[0]} rows, first {request.first}, "
                f"k {request.k}; give one limit a row, and nothing negative"
            )
        return len(request.queries)


def _best(request: SelectRequest, candidates: Candidates, pooled: Float32) -> SelectReply:
    """The k best of pooled scores [R, S, n] of the candidates."""
    rows, num_selections, count = pooled.shape
    shape = (rows, num_selections, request.k)
    if not (pooled.size and request.k):
        return SelectReply(np.full(shape, -1, np.int32), np.full(shape, -np.inf, np.float32))
    limits = candidates.limits
    row_limits = limits if num_selections == 1 else np.repeat(limits, num_selections)
    ids = np.empty((len(row_limits), request.k), np.int32)
    scores = np.empty(ids.shape, np.float32)
    top_blocks(pooled.reshape(len(ids), count), row_limits, request.k, ids, scores)
    if candidates.ids is not None:
        ids = candidates.named(ids)
    elif request.first:
        ids[ids >= 0] += np.int32(request.first)
    return SelectReply(ids.reshape(shape), scores.reshape(shape))
