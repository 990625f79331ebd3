"""Selection on the device for the sessions whose anchors have room there; the stores serve the others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from moorage.kernels.block_score import score_blocks
from moorage.kernels.block_score.tensors import score_tensors
from moorage.kernels.top_blocks import top_blocks
from moorage.workers.gpu.engine.batch import DecodeStep, SessionGuard
from moorage.workers.gpu.engine.timing import PartTimer, least_seconds
from moorage.workers.gpu.selection.device_scorer import DeviceScorer
from moorage.workers.gpu.selection.queries import LayerQueries, attention_scale, scoring_queries
from moorage.workers.gpu.selection.selector import BlockSelector, Selection
from moorage.workers.kv.shards import ShardedKv
from moorage.workers.spec import KvLayout

TRIAL_TOKENS = 131072
"""Length of the context on which the two places are compared."""
TRIAL_BLOCKS_SELECTED = 64


class DeviceSelector:
    """Asks `scorer` where it holds a session's anchors, else `inner`."""

    def __init__(
        self, inner: BlockSelector, scorer: DeviceScorer, layout: KvLayout, timer: PartTimer
    ) -> None:
        self._inner, self._scorer, self._layout, self._timer = inner, scorer, layout, timer

    def select(
        self, layer: int, queries: LayerQueries, steps: Sequence[DecodeStep], guard: SessionGuard
    ) -> list[Selection]:
        """See BlockSelector."""
        found: dict[int, Selection] = {}
        for step in steps:
            if self._scorer.holds(step.session.session_id):
                guard.run(step.session, lambda step=step: self._one(found, layer, queries, step))  # type: ignore[misc]
        others = [step for step in steps if step.row not in found]
        found |= zip(
            (step.row for step in others), self._inner.select(layer, queries, others, guard), strict=True
        )
        return [found[step.row] for step in steps]

    def _one(self, found: dict[int, Selection], layer: int, queries: LayerQueries, step: DecodeStep) -> None:
        session, ranges = step.session, step.ranges
        with self._timer("select"):
            ids = self._scorer.select(
                session.session_id,
                layer,
                scoring_queries(session, layer, queries.plain[step.row][None], ranges.position)[0],
                first=ranges.num_sinks,
                limit=ranges.near_block,
                memory=session.memory,
                scale=attention_scale(session, layer),
            )
        if ids is not None:
            found[step.row] = ids


def scores_on_device(kv: ShardedKv, layout: KvLayout, group_size: int, device: torch.device) -> bool:
    """Whether the device selects sooner than the stores, by one measurement of some 10 ms at the start.

    Both score the made-up anchors of one layer of `TRIAL_TOKENS` tokens for one query. The stores' time is that of
    their kernel in this process and of the way to them and back.
    """
    count, dim = layout.num_blocks(TRIAL_TOKENS), layout.head_dim
    half = layout.element == "float16"
    shape = count, layout.num_kv_heads, layout.anchor_vectors, dim
    anchors, pages = np.zeros(shape, np.dtype(layout.element)), np.arange(count, dtype=np.int32)
    query = np.zeros((1, layout.num_kv_heads * group_size, dim), np.float32)
    k, bounds = min(TRIAL_BLOCKS_SELECTED, count), layout.anchor_type.bounds
    there = [torch.from_numpy(array).to(device) for array in (anchors, pages, query)]
    stored = anchors.view(np.uint16) if half else anchors
    logits = np.empty((1, query.shape[1], count), np.float32)
    ids, scores = np.empty((1, k), np.int32), np.empty((1, k), np.float32)

    def on_device() -> None:
        pooled = score_tensors(there[0], there[1], there[2], bounds)[0].mean(dim=0)
        pooled.topk(k, sorted=False).indices.sort().values.cpu()

    def by_stores() -> None:
        score_blocks(stored, pages, query, bounds, logits)
        top_blocks(logits.mean(axis=1), np.array([count], np.int32), k, ids, scores)
        kv.stats()

    return least_seconds(on_device, device) < least_seconds(by_stores, torch.device("cpu"))
