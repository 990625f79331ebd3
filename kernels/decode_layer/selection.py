"""The blocks that one session attends: each memory's best, then the best of all memories."""

from __future__ import annotations

from typing import Any

import numpy as np

from moorage.kernels.addresses import matrix_at
from moorage.kernels.block_select.cpu import select_exactly
from moorage.kernels.compiling import njit
from moorage.kernels.decode_layer.memory import ANCHORS, PAGES, count_in
from moorage.kernels.merge_top.cpu import merge_into
from moorage.kernels.numba_flags import SERIAL
from moorage.kernels.rotation import rotate_into


@njit(**SERIAL, inline="always")
def select_candidates(i: Any, layer: Any, team: Any) -> None:
    """Writes ids, scores and window_first of session i of a `Layer`, for which a team scores."""
    shape, batch, query, selections = layer.shape, layer.batch, layer.query, layer.selections
    num_memories, (num_selections, k) = len(layer.table), selections.ids.shape[1:]
    selections.window_first[i] = batch.near_block[i]
    if k == 0:
        return
    queries = np.empty((1, *query.shape[1:]), np.float32)
    _as_scored(i, batch, query[i], queries[0])
    if num_memories == 1:
        ids, scores = selections.ids[i : i + 1], selections.scores[i : i + 1]
    else:
        ids = np.empty((num_memories, num_selections, k), np.int32)
        scores = np.empty((num_memories, num_selections, k), np.float32)
    for shard in range(num_memories):
        _select_within(shard, i, layer, queries, team, ids[shard : shard + 1], scores[shard : shard + 1])
    if num_memories > 1:
        merge_into(ids, scores, shape.stripe_blocks, selections.ids[i], selections.scores[i])


@njit(**SERIAL)
def _as_scored(i: Any, batch: Any, query: Any, out: Any) -> None:
    """The query [Hq, D] as it meets the anchors."""
    if batch.rotates_scoring:
        rotate_into(query, batch.score_cos[i], batch.score_sin[i], out)
    else:
        for head in range(len(query)):
            for d in range(query.shape[1]):
                out[head, d] = query[head, d]


@njit(**SERIAL, inline="always")
def _select_within(shard: Any, i: Any, layer: Any, queries: Any, team: Any, ids: Any, scores: Any) -> None:
    """ids, scores [1, S, k] of the best candidates in the memory of stripe `shard`, numbered within the memory."""
    table, shape, batch = layer.table, layer.shape, layer.batch
    num_memories = len(table)
    m = (batch.first_memory[i] + shard) % num_memories
    low = count_in(batch.num_sinks[i], shard, num_memories, shape.stripe_blocks)
    high = count_in(batch.near_block[i], shard, num_memories, shape.stripe_blocks)
    if low == high:
        ids[:], scores[:] = -1, -np.inf
        return
    begin, num_pages = batch.page_start[i, m], table[m, PAGES]
    pages = batch.pages[begin + low : begin + high]
    num_selections = ids.shape[1]
    factor = batch.scale[i] * np.float32(num_selections / queries.shape[1])
    limits = np.full(1, high - low, np.int32)
    problem = queries, shape.bounds, shape.num_kv_heads, factor, limits, low, ids, scores
    anchors = matrix_at(table[m, ANCHORS], num_pages, layer.anchor_size, layer.empty)
    pooled = np.empty(num_selections * len(pages), np.float32)
    select_exactly(anchors, pages, problem, pooled, layer.hints[0], layer.hints[1], team)
