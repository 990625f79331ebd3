"""Scores candidates by their anchors, pools the heads and takes the best. Numba holds no state of any session."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from moorage.kernels.block_score import score_blocks, score_keys
from moorage.kernels.block_select import Coded, SeveralCoded, select_blocks, select_blocks_together
from moorage.kernels.hadamard import turn_heads
from moorage.kernels.pool_scores import pool_scores, score_lse
from moorage.kernels.top_blocks import top_blocks
from moorage.workers.errors import InvalidRequest
from moorage.workers.kv.arena import Arena
from moorage.workers.kv.faiss_scorer import FaissScorer
from moorage.workers.kv.messages import Float32, Int32, SelectReply, SelectRequest
from moorage.workers.kv.quantized_anchors import QuantizedAnchors
from moorage.workers.spec import AnchorPool, AnchorType, HeadPool, Scorer


@dataclass(frozen=True, slots=True)
class Preselection:
    """A preselection: some of the blocks before `limit`, and every block from there on."""

    blocks: Int32
    """Ascending."""
    limit: int

    def until(self, end: int) -> Int32:
        """The candidates before `end`."""
        if end <= self.limit:
            return self.blocks
        return np.concatenate((self.blocks, np.arange(self.limit, end, dtype=np.int32)))


class Asked(NamedTuple):
    """A request with what the store knows of its session."""

    request: SelectRequest
    pages: Int32
    num_sealed: int
    kept: Preselection | None


@dataclass(slots=True)
class Scoring:
    """Raw logits of one request's candidates, kept between `score` and `choose`."""

    request: SelectRequest
    candidates: Int32 | None
    """[n] block ids, ascending; None stands for the n blocks from `request.first` on."""
    limits: Int32
    """[R]: row r may choose among the first `limits[r]` candidates."""
    logits: Float32
    """[R, Hq, n]"""


_MAX_SPARE = 4
"""Buffers kept for the next request."""


class Selector:
    """The steps of a selection over one arena, on buffers that are used again."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._quest = arena.layout.anchor_type.bounds
        self._turns = arena.layout.anchor_type is AnchorType.QUEST_HADAMARD
        self._spare: list[Float32] = []
        self._scratch: Float32 = np.empty(0, np.float32)
        """Scores of choices that one call makes."""
        self._coarse = QuantizedAnchors(arena) if arena.layout.anchor_codes else None
        self._faiss = None if arena.layout.scorer is Scorer.NUMBA else FaissScorer(arena)

    def select(
        self, request: SelectRequest, pages: Int32, num_sealed: int, kept: Preselection | None
    ) -> SelectReply:
        """The best candidates of this arena alone."""
        if self._faiss is not None:
            self._check(request)
            allowed = None if kept is None else kept.until(num_sealed)
            meeting = request._replace(queries=self._meeting(request.queries))
            return self._faiss.select(meeting, pages, num_sealed, allowed)
        if self._is_linear(request):
            return self._select_linear(request, pages, num_sealed, kept)
        scoring = self.score(request, pages, num_sealed, kept)
        reply = self.choose(scoring, self.lse(scoring) if request.pooling is HeadPool.SOFTMAX else None)
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
            return [self.select(*one) for one in asked]
        return self._select_linear_together(asked, first)

    def _is_linear(self, request: SelectRequest) -> bool:
        """Whether the scores of a block's heads are summed, so that one dot product gives the sum."""
        one_vector = self._arena.layout.anchor_num == 1 and not request.perhead and request.refine is None
        return one_vector and request.pooling is HeadPool.SUM

    def _select_linear_together(self, asked: Sequence[Asked], first: SelectRequest) -> list[SelectReply]:
        layout, count = self._arena.layout, len(asked)
        for one in asked:
            self._check(one.request)
        found = [_candidates(*one) for one in asked]
        num_choices = first.num_choices(layout.num_kv_heads)
        ids = np.empty((count, num_choices, first.k), np.int32)
        scores = np.empty(ids.shape, np.float32)
        bounds = np.cumsum([0, *(len(pages) for _, pages, _ in found)], dtype=np.int32)
        select_blocks_together(
            self._arena.anchors[first.layer],
            np.concatenate([pages for _, pages, _ in found]),
            bounds,
            self._meeting(np.concatenate([one.request.queries for one in asked])),
            np.concatenate([limits for _, _, limits in found]),
            quest=self._quest,
            scales=np.array([one.request.scale for one in asked], np.float32),
            firsts=np.array(
                [
                    one.request.first if among is None else 0
                    for one, (among, _, _) in zip(asked, found, strict=True)
                ],
                np.int32,
            ),
            ids=ids,
            scores=scores,
            scratch=self._room(num_choices * int(bounds[-1])),
            coded=self._coded_together(asked, first),
        )
        for i, (among, _, _) in enumerate(found):
            if among is not None and len(among):
                ids[i] = np.where(ids[i] >= 0, among[ids[i]], np.int32(-1))
        return [SelectReply(ids[i : i + 1], scores[i : i + 1]) for i in range(count)]

    def _coded_together(self, asked: Sequence[Asked], first: SelectRequest) -> SeveralCoded:
        size = self._arena.anchors[first.layer, 0].size
        steps, num_kept = np.zeros((len(asked), size), np.float32), np.zeros(len(asked), np.int32)
        if self._coarse is None:
            return SeveralCoded(np.empty((0, size // 2), np.uint8), steps, num_kept)
        for i, (request, pages, num_sealed, _) in enumerate(asked):
            coded = self.codes(request.session_id, request.layer, pages[:num_sealed], request.k)
            if coded is not None:
                steps[i], num_kept[i] = coded.step, coded.num_kept
        return SeveralCoded(self._arena.codes[first.layer], steps, num_kept)

    def _select_linear(
        self, request: SelectRequest, pages: Int32, num_sealed: int, kept: Preselection | None
    ) -> SelectReply:
        """Scores, pools and chooses in one pass over the anchors, or over their codes."""
        rows, _ = self._check(request)
        candidates, candidate_pages, limits = _candidates(request, pages, num_sealed, kept)
        coded = self.codes(request.session_id, request.layer, pages[:num_sealed], request.k)
        num_choices = request.num_choices(self._arena.layout.num_kv_heads)
        ids = np.empty((rows, num_choices, request.k), np.int32)
        scores = np.empty(ids.shape, np.float32)
        select_blocks(
            self._arena.anchors[request.layer],
            candidate_pages,
            self._meeting(request.queries),
            limits,
            quest=self._quest,
            scale=request.scale,
            ids=ids,
            scores=scores,
            scratch=self._room(rows * num_choices * len(candidate_pages)),
            coded=coded,
            first=0 if candidates is not None else request.first,
        )
        if candidates is not None and len(candidates):
            ids = np.where(ids >= 0, candidates[ids], np.int32(-1))
        return SelectReply(ids, scores)

    def codes(self, session_id: int, layer: int, pages: Int32, num_wanted: int) -> Coded | None:
        """Codes of the sealed blocks on `pages` for a choice of `num_wanted`; None where they would not help."""
        return None if self._coarse is None else self._coarse.of(session_id, layer, pages, num_wanted)

    def forget(self, session_id: int, layer: int | None = None, first_block: int = 0) -> None:
        """Anchors of a session, or of one layer of it, are gone or have changed from `first_block` on."""
        if self._faiss is not None:
            self._faiss.forget(session_id, layer)
        if self._coarse is not None:
            self._coarse.forget(session_id, layer, first_block)

    def score(
        self, request: SelectRequest, pages: Int32, num_sealed: int, kept: Preselection | None
    ) -> Scoring:
        """Logits of the candidates; the session holds `pages`, of which `num_sealed` are sealed."""
        rows, heads = self._check(request)
        candidates, candidate_pages, limits = _candidates(request, pages, num_sealed, kept)
        count = len(candidate_pages)
        logits = self._borrow(rows * heads * count).reshape(rows, heads, count)
        if logits.size and request.refine is not None:
            score_keys(*self._arena.readable(request.layer, candidate_pages), request.queries, logits)
        elif logits.size:
            anchors, add = self._arena.anchors[request.layer], request.anchor_pool is AnchorPool.SUM
            queries = self._meeting(request.queries)
            score_blocks(anchors, candidate_pages, queries, self._quest, logits, add=add)
        return Scoring(request, candidates, limits, logits)

    def lse(self, scoring: Scoring) -> Float32:
        """[R, Hq]: log of the sum of exp(scale * logit) over each row's candidates; -inf without any."""
        shape = scoring.logits.shape[:2]
        if not scoring.logits.size:
            return np.full(shape, -np.inf, np.float32)
        out = np.empty(shape, np.float32)
        score_lse(scoring.logits, scoring.request.scale, scoring.limits, out)
        return out

    def choose(self, scoring: Scoring, lse: Float32 | None) -> SelectReply:
        """The best candidates; `lse` [R, Hq] over the blocks of all shards is needed for SOFTMAX only."""
        pooled = self._pool(scoring, lse)
        reply = _best(scoring.request, scoring.candidates, scoring.limits, pooled)
        self._give_back(pooled)
        return reply

    def release(self, scoring: Scoring) -> None:
        """Takes the logits' memory back; `scoring` must not be used again."""
        self._give_back(scoring.logits)

    def _pool(self, scoring: Scoring, lse: Float32 | None) -> Float32:
        rows, _, count = scoring.logits.shape
        num_choices = scoring.request.num_choices(self._arena.layout.num_kv_heads)
        pooled = self._borrow(rows * num_choices * count).reshape(rows, num_choices, count)
        request = scoring.request
        pool_scores(
            scoring.logits,
            num_choices,
            num_choices == 1,
            request.scale,
            scoring.limits,
            pooled,
            request.pooling.value,
            lse,
        )
        return pooled

    def _meeting(self, queries: Float32) -> Float32:
        """Queries [R, Hq, D] as they meet the anchors, which may be of transformed keys."""
        if not self._turns:
            return queries
        turned = queries.copy()
        turn_heads(turned.reshape(-1, queries.shape[2]))
        return turned

    def _check(self, request: SelectRequest) -> tuple[int, int]:
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
        return shape[0], shape[1]

    def _room(self, size: int) -> Float32:
        """At least `size` elements, of which nothing is kept."""
        if self._scratch.size < size:
            self._scratch = np.empty(size, np.float32)
        return self._scratch

    def _borrow(self, size: int) -> Float32:
        """A flat buffer of `size`, the smallest spare one that fits if there is one."""
        fitting = [buffer for buffer in self._spare if buffer.size >= size]
        if fitting:
            best = min(fitting, key=lambda buffer: buffer.size)
            self._spare = [buffer for buffer in self._spare if buffer is not best]
            return best[:size]
        return np.empty(size, np.float32)

    def _give_back(self, part: Float32) -> None:
        base = part if part.base is None else part.base
        self._spare = [*self._spare[-(_MAX_SPARE - 1) :], base]


def _candidates(
    request: SelectRequest, pages: Int32, num_sealed: int, kept: Preselection | None
) -> tuple[Int32 | None, Int32, Int32]:
    """(candidates as in Scoring, their pages, how many of them each row may choose among)."""
    first = request.first
    if len(request.limits) == 1 and kept is None and request.refine is None:
        end = max(min(int(request.limits[0]), num_sealed), first)
        return None, pages[first:end], np.array([end - first], np.int32)
    limits = np.maximum(np.minimum(request.limits, np.int32(num_sealed)), np.int32(first))
    end = int(limits.max()) if len(limits) else first
    among = request.refine if kept is None or request.refine is not None else kept.until(end)
    if among is None:
        return None, pages[first:end], limits - np.int32(first)
    ids = among[np.searchsorted(among, first) : np.searchsorted(among, end)]
    return ids, pages[ids], np.searchsorted(ids, limits).astype(np.int32)


def _best(request: SelectRequest, candidates: Int32 | None, limits: Int32, pooled: Float32) -> SelectReply:
    """The k best of pooled scores [R, S, n], of which row r may take the first limits[r]."""
    rows, num_choices, count = pooled.shape
    shape = (rows, num_choices, request.k)
    if not (pooled.size and request.k):
        return SelectReply(np.full(shape, -1, np.int32), np.full(shape, -np.inf, np.float32))
    row_limits = limits if num_choices == 1 else np.repeat(limits, num_choices)
    ids = np.empty((len(row_limits), request.k), np.int32)
    scores = np.empty(ids.shape, np.float32)
    top_blocks(pooled.reshape(len(ids), count), row_limits, request.k, ids, scores)
    if candidates is not None:
        ids = np.where(ids >= 0, candidates[ids], np.int32(-1))
    elif request.first:
        ids[ids >= 0] += np.int32(request.first)
    return SelectReply(ids.reshape(shape), scores.reshape(shape))
