"""Selections by the last step's query: against a slow plan, beside those at once, in batches and after failures."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest

from moorage.workers.errors import StoreFull
from moorage.workers.gpu.attention import host_memory
from moorage.workers.gpu.engine.session_state import WorkerSession
from moorage.workers.kv.link import LocalLink
from moorage.workers.kv.messages import SelectReply, SelectRequest
from moorage.workers.kv.store import KvStore
from moorage.workers.spec import (
    AnchorType,
    HeadPool,
    HeadSelectMode,
    Positions,
    Preselect,
    Segment,
    StepPlan,
)
from tests.engine_driver import Driver, memory
from tests.tiny_models import TinyModel, build_tiny_checkpoint
from tests.workers.gpu.engine.test_engine import prompt_of
from tests.workers.gpu.slow_plan import Array, SlowPlan
from tests.workers.gpu.test_overlap import emulated
from tests.workers.gpu.test_published_plans import check, read

selected = partial(memory, topk=3, sinks=16)
lagged = partial(selected, asynchronous=True, asynchronous_cosine=-1.0)
Sets = list[tuple[int, int, list[list[int]], bool]]
"""(decode step, layer, ids of each selection, whether it was made at once) of each selection that was attended."""


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return build_tiny_checkpoint("llama3", tmp_path_factory.mktemp("llama3"))


@dataclass
class LaggedPlan(SlowPlan):
    """Each step attends what the last step's query selected, and what left the window since, unless a head moved."""

    last: dict[int, tuple[list[list[int]], int, Array]] = field(default_factory=dict)
    """By layer: ids of each selection, the first near block and the scoring query of the last step."""
    stayed: int = 0
    moved: int = 0

    def _select(self, layer: int, queries: Array, first: int) -> list[list[int]]:
        num_selections = len(self.selected)
        ids = super()._select(layer, queries, first)
        if len(self.selected) == num_selections:
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
                moves = min(cosines) < self.memory.selection.asynchronous_cosine
                self.moved, self.stayed = self.moved + moves, self.stayed + (not moves)
                attended.append(ids[row] if moves else [*old_ids[row], *range(old_near, near)])
        self.last[layer] = (ids, near, query)
        self.selected[-1] = (first, layer, attended)
        return attended


@pytest.mark.parametrize("cosine", [-1.0, 0.0])
@pytest.mark.parametrize(
    ("changes", "kind", "rotated"),
    [
        ({}, AnchorType.DYNAMIC, True),
        ({"scheme": Positions.CLAMPED, "execution_block": 24}, AnchorType.REPR_TOPK, False),
        ({"head_select_mode": HeadSelectMode.SEPARATE, "head_pool": HeadPool.MAX}, AnchorType.DYNAMIC, False),
        ({"head_select_mode": HeadSelectMode.PERHEAD}, AnchorType.DYNAMIC, True),
        (
            {"preselect": Preselect.PROMPT, "preselect_blocks": 1, "scheme": Positions.CLAMPED},
            AnchorType.DYNAMIC,
            False,
        ),
    ],
    ids=["shared", "clamped", "separate", "perhead", "padded"],
)
def test_chosen_sets_equal_those_of_the_slow_plan(
    llama: TinyModel, changes: dict[str, Any], kind: AnchorType, rotated: bool, cosine: float
) -> None:
    axes = memory(
        topk=3,
        window=16,
        sinks=8,
        importance_queries=16,
        asynchronous=True,
        asynchronous_cosine=cosine,
        **changes,
    )
    size = 12 if kind is AnchorType.REPR_TOPK else 8
    plan = check(llama, axes, 130, 30, size, kind, rotated=rotated, chunks=(72,), slow=LaggedPlan)
    assert isinstance(plan, LaggedPlan)
    assert plan.stayed
    assert bool(plan.moved) == (cosine > -1)


def watch(driver: Driver) -> Sets:
    """What decode steps attend from now on."""
    sets: Sets = []

    def observe(session: WorkerSession, layer: int, ids: Any, _lse: object) -> None:
        if ids is not None:
            rows = [sorted(int(block) for block in row if block >= 0) for row in ids]
            kept = session.selections.get(layer)
            # A compiled call selects at once, and keeps nothing here.
            at_once = kept is None or kept.decode_step == session.decode_index
            sets.append((session.decode_index, layer, rows, at_once))

    driver.observe(observe)
    return sets


@pytest.mark.parametrize("mode", list(HeadSelectMode))
def test_a_threshold_that_every_head_is_under_equals_choosing_at_once(
    llama: TinyModel, mode: HeadSelectMode
) -> None:
    tokens, found = prompt_of(llama, 200), []
    assert all(tokens[i] != tokens[i + 1] for i in range(180, 199)), (
        "a token again asks the same in the first layer"
    )
    for axes in (selected(head_select_mode=mode), lagged(head_select_mode=mode, asynchronous_cosine=1.0)):
        driver = Driver(llama.directory, llama.spec)
        sets = watch(driver)
        results = read(driver, axes, tokens, 180, (64,))
        found.append(([(r.token_id, r.logprob) for r in results], sets))
        corrected = llama.spec.num_layers if axes.selection.asynchronous else 0
        assert [r.num_corrected for r in results] == [0, 0] + [corrected] * 19
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "options",
    [
        {"score_on": "device"},
        {"in_place": False, "max_cached_block": 3},
        {"copies": emulated, "prefetch": True, "num_shards": 3},
    ],
    ids=["device", "slots", "emulated"],
)
@pytest.mark.parametrize("mode", [HeadSelectMode.SHARED, HeadSelectMode.SEPARATE])
def test_where_blocks_and_anchors_lie_changes_nothing(
    llama: TinyModel, mode: HeadSelectMode, options: dict[str, Any]
) -> None:
    prompt, found = prompt_of(llama, 180), []
    for each in ({}, options):
        driver = Driver(llama.directory, llama.spec, **each)
        sets = watch(driver)
        driver.generate(prompt, lagged(head_select_mode=mode, asynchronous_cosine=0.0), (64,), 40)
        found.append(sets)
    assert found[0] == found[1]


@pytest.mark.parametrize(("in_place", "most"), [(True, 2), (False, 3)])
def test_sessions_in_one_batch_choose_what_each_chooses_alone(
    llama: TinyModel, monkeypatch: pytest.MonkeyPatch, in_place: bool, most: int
) -> None:
    """One selection at once, two lagged ones of different thresholds, and one that is short of a selection.

    In place the first is made by a compiled call, without a question.
    """
    plans = [
        (prompt_of(llama, length, length), axes)
        for length, axes in (
            (150, selected(topk=2)),
            (140, lagged(topk=2)),
            (160, lagged(topk=2, asynchronous_cosine=0.0)),
            (40, lagged(topk=2)),
        )
    ]
    driver = Driver(llama.directory, llama.spec, in_place=in_place)
    alone = [driver.generate(prompt, axes, (len(prompt) - 1, 1), 8) for prompt, axes in plans]
    asked = driver.note_questions(monkeypatch)
    opens = tuple(driver.open(i, prompt, axes, 8) for i, (prompt, axes) in enumerate(plans))
    segments = tuple(Segment(i, 0, tuple(prompt[:-1]), sample=False) for i, (prompt, _) in enumerate(plans))
    driver.step(opens=opens, segments=segments)
    last = [prompt[-1] for prompt, _ in plans]
    for step in range(8):
        segments = tuple(
            Segment(i, len(prompt) - 1 + step, (last[i],), sample=True) for i, (prompt, _) in enumerate(plans)
        )
        for i, result in enumerate(driver.step(segments=segments)):
            want = alone[i][step]
            assert (result.token_id, result.num_corrected) == (want.token_id, want.num_corrected)
            assert result.logprob == pytest.approx(want.logprob, abs=1e-4)
            assert result.token_id is not None
            last[i] = result.token_id
    assert asked
    assert max(asked) == most


def test_a_choice_is_made_while_the_next_layer_attends(
    llama: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(llama.directory, llama.spec, num_shards=1)
    results = driver.generate(prompt_of(llama, 150), lagged(), (150,), 3, keep=True)
    order: list[tuple[str, int]] = []
    select, attend = driver.stores[0].shard.select, host_memory.decode_layer

    def noted_select(request: SelectRequest) -> SelectReply:
        order.append(("select", request.layer))
        return select(request)

    def noted_attend(*args: Any, **options: Any) -> Any:
        order.append(("attend", sum(name == "attend" for name, _ in order)))
        return attend(*args, **options)

    monkeypatch.setattr(driver.stores[0].shard, "select", noted_select)
    monkeypatch.setattr(host_memory, "decode_layer", noted_attend)
    assert results[-1].token_id is not None
    driver.step(segments=(Segment(1, 152, (results[-1].token_id,), sample=True),))
    layers = llama.spec.num_layers
    expected = [("attend", 0)]
    for layer in range(1, layers):
        expected += [("attend", layer), ("select", layer - 1)]
    assert order == [*expected, ("select", layers - 1)]


def test_another_turn_begins_with_choices_at_once(llama: TinyModel) -> None:
    driver, layers = Driver(llama.directory, llama.spec), llama.spec.num_layers
    sets = watch(driver)
    first = prompt_of(llama, 150)
    driver.generate(first, lagged(), (64,), 6, keep=True)
    driver.generate([*first[:120], *prompt_of(llama, 30, seed=5)], lagged(), (64,), 6, continued=120)
    assert [at_once for _, _, _, at_once in sets] == ([True] * layers + [False] * 4 * layers) * 2


@pytest.mark.parametrize("behind", [0, 1], ids=["last layer", "layer before"])
def test_a_choice_behind_that_fails_fails_the_session(
    llama: TinyModel, monkeypatch: pytest.MonkeyPatch, behind: int
) -> None:
    """What a shard answers may be that it lost rows, so that nobody may pass over it."""
    driver, layers = Driver(llama.directory, llama.spec, num_shards=1), llama.spec.num_layers
    results = driver.generate(prompt_of(llama, 150), lagged(), (150,), 3, keep=True)
    select = driver.stores[0].shard.select

    def fails(request: SelectRequest) -> SelectReply:
        if request.layer == layers - 1 - behind:
            raise StoreFull("no room")
        return select(request)

    assert results[-1].token_id is not None
    segment = Segment(1, 152, (results[-1].token_id,), sample=True)
    with monkeypatch.context() as patch:
        patch.setattr(driver.stores[0].shard, "select", fails)
        (failed,) = driver.worker.step(StepPlan(8, segments=(segment,))).segments
    assert isinstance(failed.error, StoreFull)
    assert driver.step(segments=(segment,))[0].token_id is not None


def test_where_choices_behind_fail_together_the_next_step_chooses_at_once(
    llama: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, layers = Driver(llama.directory, llama.spec, num_shards=1), llama.spec.num_layers
    prompts = [prompt_of(llama, 150, seed) for seed in (1, 2)]
    last = [driver.generate(p, lagged(), (150,), 3, i, keep=True)[-1] for i, p in enumerate(prompts)]
    sets = watch(driver)
    select, layer = driver.stores[0].shard.select_together, 1

    def fails(requests: list[SelectRequest]) -> list[SelectReply]:
        if requests[0].layer == layer:
            raise StoreFull("no room")
        return select(requests)

    for step in range(2):
        tokens = [result.token_id for result in last]
        segments = tuple(Segment(i, 152 + step, (t,), sample=True) for i, t in enumerate(tokens) if t)
        assert len(segments) == 2
        with monkeypatch.context() as patch:
            if step == 0:
                patch.setattr(driver.stores[0].shard, "select_together", fails)
            last = driver.step(segments=segments)
    assert {(step, at) for step, at, _, at_once in sets if at_once} == {(3, layer)}
    assert len(sets) == 2 * 2 * layers


@pytest.mark.parametrize("other", [Preselect.OFF, Preselect.STEP])
def test_a_session_that_is_asked_for_alone_keeps_its_choices_in_a_batch(
    llama: TinyModel, other: Preselect
) -> None:
    """A choice in two passes is never made for several sessions at once; it is made behind nevertheless."""
    axes = {i: lagged(preselect=mode, preselect_blocks=6) for i, mode in ((1, Preselect.STEP), (2, other))}
    prompts = {i: prompt_of(llama, 150, i) for i in axes}
    found: list[Sets] = []
    for batch in ((1,), (2,), (1, 2)):
        driver = Driver(llama.directory, llama.spec)
        for i in batch:
            driver.generate(prompts[i], axes[i], (150,), 1, i, keep=True)
        sets = watch(driver)
        for at in range(150, 155):
            # The same tokens in every batch, whatever is drawn.
            driver.step(segments=tuple(Segment(i, at, (prompts[i][at - 100],), sample=True) for i in batch))
        found.append(sets)
    assert any(not at_once for *_, at_once in found[0])
    assert sorted(found[2]) == sorted(found[0] + found[1])


class FailingLink(LocalLink):
    """Refuses the rows of one token of the last layer once."""

    refused: tuple[int, int] | None = None
    """(layer, position)"""

    def __init__(self, store: KvStore) -> None:
        super().__init__(store)
        write = store.shard.write

        def refuse(session_id: int, layer: int, start: int, keys: Any, values: Any) -> None:
            if (layer, start) == type(self).refused:
                type(self).refused = None
                raise StoreFull("no room")
            write(session_id, layer, start, keys, values)

        store.shard.write = refuse  # type: ignore[method-assign, assignment]


def test_a_step_that_failed_leaves_nothing_behind(llama: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tried again, its first layers select at once, since theirs are made by the failed step's query already."""
    driver = Driver(llama.directory, llama.spec, num_shards=1, link=FailingLink, in_place=False)
    last_layer, prompt = llama.spec.num_layers - 1, prompt_of(llama, 150)
    sets = watch(driver)
    results = driver.generate(prompt, lagged(), (150,), 4, keep=True)
    token_id = results[-1].token_id
    assert token_id is not None
    monkeypatch.setattr(FailingLink, "refused", (last_layer, 153))
    segment = Segment(1, 153, (token_id,), sample=True)
    (failed,) = driver.worker.step(StepPlan(8, segments=(segment,))).segments
    assert isinstance(failed.error, StoreFull)
    sets.clear()
    (again,) = driver.step(segments=(segment,))
    assert again.token_id is not None
    assert [at_once for _, _, _, at_once in sets] == [True] * (last_layer - 1) + [False] * 2
