"""Choices by the last step's query: against a slow plan, beside choices at once, in batches and after failures."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest

from moorage.workers.errors import MoorageError, PeerDead
from moorage.workers.gpu.session import WorkerSession
from moorage.workers.kv.messages import SelectReply, SelectRequest
from moorage.workers.kv.shards import ShardedKv
from moorage.workers.spec import (
    AnchorType,
    HeadPool,
    HeadSelectMode,
    MemorySpec,
    Positions,
    Preselect,
    Segment,
    SegmentResult,
    StepPlan,
)
from tests.engine_driver import Driver, memory
from tests.tiny_models import TinyModel, build_tiny_checkpoint
from tests.workers.gpu.slow_plan import Array, SlowPlan
from tests.workers.gpu.test_engine import prompt_of
from tests.workers.gpu.test_overlap import emulated
from tests.workers.gpu.test_published_plans import check

lagged = partial(memory, topk=3, n_init=16, lag=1)
Sets = list[tuple[int, int, list[list[int]]]]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return build_tiny_checkpoint("llama3", tmp_path_factory.mktemp("llama3"))


@dataclass
class LaggedPlan(SlowPlan):
    """Each choice attends what the last step's query chose, and what left the window since, unless a head moved."""

    last: dict[int, tuple[list[list[int]], int, Array]] = field(default_factory=dict)
    """By layer: ids of each choice, the first near block and the scoring query of the last step."""
    stayed: int = 0
    moved: int = 0

    def _choose(self, layer: int, queries: Array, first: int) -> list[list[int]]:
        num_choices = len(self.chosen)
        ids = super()._choose(layer, queries, first)
        if len(self.chosen) == num_choices:
            return ids
        query, near = self._scoring(queries[0], first), self._near_block(first)
        attended = ids
        if layer in self.last:
            old_ids, old_near, old_query = self.last[layer]
            attended = []
            for row, heads in enumerate(np.split(np.arange(len(query)), len(ids))):
                cosines = [
                    query[h] @ old_query[h] / np.linalg.norm(query[h]) / np.linalg.norm(old_query[h])
                    for h in heads
                ]
                moves = min(cosines) < self.memory.lag_cosine
                self.moved, self.stayed = self.moved + moves, self.stayed + (not moves)
                attended.append(ids[row] if moves else [*old_ids[row], *range(old_near, near)])
        self.last[layer] = (ids, near, query)
        self.chosen[-1] = (first, layer, attended)
        return attended


@pytest.mark.parametrize("cosine", [-1.0, 0.5])
@pytest.mark.parametrize(
    ("changes", "kind", "rotated"),
    [
        ({}, AnchorType.DYNAMIC, True),
        ({"positions": Positions.CLAMPED, "exc_block_size": 24}, AnchorType.REPR_TOPK, False),
        ({"head_select_mode": HeadSelectMode.SEPARATE, "head_pool": HeadPool.MAX}, AnchorType.DYNAMIC, False),
        ({"head_select_mode": HeadSelectMode.PERHEAD}, AnchorType.DYNAMIC, True),
        ({"preselect_block": Preselect.PROMPT, "preselect_block_count": 1}, AnchorType.DYNAMIC, False),
    ],
    ids=["shared", "clamped", "separate", "perhead", "padded"],
)
def test_chosen_sets_equal_those_of_the_slow_plan(
    llama: TinyModel, changes: dict[str, Any], kind: AnchorType, rotated: bool, cosine: float
) -> None:
    axes = memory(
        topk=3, local_windows_len=16, n_init=8, importance_queries=16, lag=1, lag_cosine=cosine, **changes
    )
    size = 12 if kind is AnchorType.REPR_TOPK else 8
    plan = check(llama, axes, 130, 30, size, kind, rotated=rotated, chunks=(72,), slow=LaggedPlan)
    assert isinstance(plan, LaggedPlan)
    print(plan.moved, plan.stayed)


def generate(driver: Driver, axes: MemorySpec, num_tokens: int = 20) -> tuple[list[SegmentResult], Sets]:
    """Results and what each decode step attended, of one session."""
    sets: Sets = []

    def observe(session: WorkerSession, layer: int, _query: Any, ids: Any, _lse: Any) -> None:
        if ids is not None:
            sets.append(
                (session.num_tokens, layer, [sorted(int(b) for b in row if b >= 0) for row in ids])
            )

    driver.worker.engine.decode.observer = observe
    return driver.generate(prompt_of(driver_model(driver), 180), axes, (64,), num_tokens), sets


def driver_model(driver: Driver) -> Any:
    return driver
