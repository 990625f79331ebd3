"""Choices on the device are those of the stores."""

from __future__ import annotations

from typing import Any

import pytest

from moorage.workers.gpu.selection.device_scorer import Trial
from moorage.workers.spec import AnchorPool, AnchorSpace, AnchorType, HeadPool, HeadSelectMode, Positions
from tests.engine_driver import Driver, memory
from tests.tiny_models import TinyModel, build_tiny_checkpoint
from tests.workers.gpu.engine.test_engine import prompt_of
from tests.workers.gpu.test_overlap import FarLink, emulated


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return build_tiny_checkpoint("llama3", tmp_path_factory.mktemp("llama3"))


def generate(llama: TinyModel, axes: Any, num_tokens: int = 40, **options: Any) -> tuple[list[Any], Driver]:
    driver = Driver(llama.directory, llama.spec, **options)
    chosen: list[Any] = []
    driver.worker.engine.decode.observer = lambda _session, layer, _query, ids, _lse: chosen.append(
        (layer, None if ids is None else ids.tolist())
    )
    tokens = [r.token_id for r in driver.generate(prompt_of(llama, 150), axes, (64,), num_tokens)]
    return [tokens, chosen], driver


@pytest.mark.parametrize("pool", list(HeadPool))
@pytest.mark.parametrize("mode", list(HeadSelectMode))
@pytest.mark.parametrize("anchor_type", [AnchorType.QUEST, AnchorType.QUEST_HADAMARD, AnchorType.BLOCK_MEAN])
def test_the_same_blocks(
    llama: TinyModel, anchor_type: AnchorType, mode: HeadSelectMode, pool: HeadPool
) -> None:
    axes = memory(topk=3, sinks=16, head_select_mode=mode, head_pool=pool)
    options = {"anchor_type": anchor_type, "anchor_num": 2}
    want, _ = generate(llama, axes, **options)
    got, driver = generate(llama, axes, score_on="device", **options)
    assert got == want
    assert driver.stores[0].stats().num_sessions == 0


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ({"anchor_type": AnchorType.DYNAMIC, "anchor_space": AnchorSpace.ROTATED}, {}),
        ({"anchor_type": AnchorType.REPR_TOPK}, {"scheme": Positions.CLAMPED, "execution_block": 32}),
        ({"anchor_num": 2}, {"anchor_pool": AnchorPool.SUM, "token_step": 3, "layer_step": 2}),
        ({"copies": emulated, "num_shards": 3}, {}),
    ],
    ids=["dynamic", "repr", "sums", "emulated"],
)
def test_anchors_that_are_made_anew_and_choices_that_are_kept(
    llama: TinyModel, options: dict[str, Any], changes: dict[str, Any]
) -> None:
    axes = memory(topk=3, sinks=16, **changes)
    want, _ = generate(llama, axes, 60, **options)
    got, _ = generate(llama, axes, 60, score_on="device", **options)
    assert got == want


@pytest.mark.parametrize("options", [{"anchor_bytes": 1000}, {"link": FarLink}], ids=["no room", "far store"])
def test_what_cannot_be_scored_there_is_scored_by_the_stores(
    llama: TinyModel, options: dict[str, Any]
) -> None:
    axes = memory(topk=3, sinks=16)
    want, _ = generate(llama, axes, 10)
    got, _ = generate(llama, axes, 10, score_on="device", **options)
    assert got == want


def test_a_second_turn_forgets_the_anchors_of_what_was_cut(llama: TinyModel) -> None:
    axes = memory(topk=2, sinks=16)
    results = []
    for score_on in ("cpu", "device"):
        driver = Driver(llama.directory, llama.spec, score_on=score_on)  # type: ignore[arg-type]
        first = prompt_of(llama, 150)
        driver.generate(first, axes, (64,), 20, keep=True)
        second = [*first[:100], *prompt_of(llama, 60, seed=5)]
        results.append([r.token_id for r in driver.generate(second, axes, (64,), 20, continued=100)])
    assert results[0] == results[1]


@pytest.mark.parametrize("slower", [0, 1])
def test_the_trial_keeps_the_faster_way(slower: int) -> None:
    trial, taken = Trial(), [0, 0]
    for _ in range(2 * Trial.ROUNDS):
        way = trial.turn()
        taken[way] += 1
        trial.note(way, 2.0 if way == slower else 1.0)
    assert taken == [Trial.ROUNDS, Trial.ROUNDS]
    assert {trial.turn() for _ in range(5)} == {1 - slower}
