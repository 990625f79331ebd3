"""Scores of anchors by Faiss in place of the Numba kernels: the same selections, from an index of its own."""

from __future__ import annotations

from typing import Any

import numpy as np

from moorage.kernels.half import from_storage
from moorage.workers.errors import InvalidConfig, InvalidRequest
from moorage.workers.kv.arena import Arena
from moorage.workers.kv.messages import Float32, Int32, SelectReply, SelectRequest
from moorage.workers.spec import AnchorPool, HeadPool, Scorer


class FaissScorer:
    """One inner-product index for each session and layer, brought up to date when it is asked.

    A block's anchors of all heads are one long vector, and so are the queries of all heads: the sum over heads is one
    inner product (InfLLM). So heads must share one selection, and several anchors of a block must add up. An index is
    a second copy of the anchors, in float32 or, for `faiss-fp16`, scalar-quantised to half.
    """

    def __init__(self, arena: Arena) -> None:
        """Raises InvalidConfig when Faiss is not installed."""
        self._faiss = _import_faiss()
        self._arena = arena
        self._half = arena.layout.scorer is Scorer.FAISS_FP16
        self._indices: dict[tuple[int, int], Any] = {}

    def invalidate(self, session_id: int, layer: int | None = None) -> None:
        """Anchors of a session, or of one layer of it, are gone or have changed."""
        for key in [key for key in self._indices if key[0] == session_id and layer in (None, key[1])]:
            del self._indices[key]

    def select(
        self, request: SelectRequest, pages: Int32, num_sealed: int, allowed: Int32 | None
    ) -> SelectReply:
        """The best of the sealed blocks, or of those that are `allowed` (ascending)."""
        self._check(request)
        index = self._index(request, pages[:num_sealed])
        queries = self._queries(request)
        ids = np.full((len(queries), 1, request.k), -1, np.int32)
        scores = np.full(ids.shape, -np.inf, np.float32)
        for row, limit in enumerate(np.minimum(request.limits, num_sealed).tolist()):
            if limit <= request.first or not request.k:
                continue
            selected = self._faiss.IDSelectorRange(request.first, limit)
            if allowed is not None:
                part = allowed[(allowed >= request.first) & (allowed < limit)].astype(np.int64)
                selected = self._faiss.IDSelectorBatch(part)
            parameters = self._faiss.SearchParameters(sel=selected)
            best, found = index.search(queries[row : row + 1], request.k, params=parameters)
            order = np.argsort(np.where(found[0] < 0, np.iinfo(np.int64).max, found[0]), kind="stable")
            ids[row, 0] = found[0][order]
            scores[row, 0] = np.where(ids[row, 0] < 0, -np.inf, best[0][order])
        return SelectReply(ids, scores)

    def _check(self, request: SelectRequest) -> None:
        layout = self._arena.layout
        adds_up = layout.anchor_num == 1 or request.anchor_pool is AnchorPool.SUM
        if not (request.shared and request.pooling is HeadPool.SUM and adds_up):
            raise InvalidRequest(
                "faiss: it scores sums over all heads and anchors only; use head_select_mode SHARED, head_pool "
                "sum and anchor_pool sum (or anchor_num 1)"
            )

    def _index(self, request: SelectRequest, pages: Int32) -> Any:
        """The layer's index, with the anchors of all `pages`."""
        layout, key = self._arena.layout, (request.session_id, request.layer)
        dim = layout.num_kv_heads * layout.anchor_vectors * layout.head_dim
        if key not in self._indices:
            self._indices[key] = (
                self._faiss.IndexScalarQuantizer(
                    dim, self._faiss.ScalarQuantizer.QT_fp16, self._faiss.METRIC_INNER_PRODUCT
                )
                if self._half
                else self._faiss.IndexFlatIP(dim)
            )
        index = self._indices[key]
        if index.ntotal < len(pages):
            new = self._arena.anchors[request.layer][pages[index.ntotal :]]
            index.add(from_storage(new).reshape(len(new), dim))
        return index

    def _queries(self, request: SelectRequest) -> Float32:
        """[R, Hkv * A * D]: each group's queries, which meet the anchors, added up as these lie in memory."""
        layout = self._arena.layout
        rows, heads, dim = request.queries.shape
        groups = request.queries.reshape(rows, layout.num_kv_heads, -1, dim)
        parts = [groups]
        if layout.anchor_type.bounds:
            # As max >= min, the bound is a dot product of [max, min] with [positive part, negative part] of q.
            parts = [np.maximum(groups, 0), np.minimum(groups, 0)]
        summed = np.stack([part.sum(axis=2) for part in parts], axis=2)
        tiled = np.tile(summed, (1, 1, layout.anchor_num, 1)).reshape(rows, -1)
        return np.ascontiguousarray(tiled * np.float32(request.scale / heads), np.float32)


def _import_faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise InvalidConfig(
            "memory.scorer: faiss is not installed; pip install 'moorage[faiss]', or use scorer numba"
        ) from None
    return faiss
