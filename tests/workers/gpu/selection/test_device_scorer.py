"""Selections on the device are those of the stores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from moorage.workers.gpu.selection import device_selector
from moorage.workers.kv.link import LocalLink
from moorage.workers.kv.shards import ShardedKv
from moorage.workers.kv.store import KvStore
from moorage.workers.spec import (
    AnchorPool,
    AnchorSpace,
    AnchorType,
    HeadPool,
    HeadSelectMode,
    KvLayout,
    KvType,
    Positions,
)
from tests.engine_driver import Driver, memory
from tests.tiny_models import TinyModel, build_tiny_checkpoint
from tests.workers.gpu.engine.test_engine import prompt_of
from tests.workers.gpu.test_overlap import FarLink, emulated


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return build_tiny_checkpoint("llama3", tmp_path_factory.mktemp("llama3"))


def generate(llama: TinyModel, axes: Any, num_tokens: int = 40, **options: Any) -> tuple[list[Any], Driver]:
    driver = Driver(llama.directory, llama.spec, **options)
    selected: list[Any] = []
    driver.observe(
        lambda _session, layer, ids, _lse: selected.append((layer, None if ids is None else ids.tolist()))
    )
    tokens = [r.token_id for r in driver.generate(prompt_of(llama, 150), axes, (64,), num_tokens)]
    return [tokens, selected], driver


@pytest.mark.parametrize("pool", list(HeadPool))
@pytest.mark.parametrize("mode", list(HeadSelectMode))
@pytest.mark.parametrize("anchor_type", [AnchorType.QUEST, AnchorType.BLOCK_MEAN])
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


@pytest.mark.parametrize("kv_type", [KvType.FP16, KvType.FP32, KvType.NUQ3])
def test_both_places_are_measured_at_the_start(kv_type: KvType, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = KvLayout(1, 2, 32, 128, kv_type)
    store = KvStore(layout, 1)
    kv, taken = ShardedKv([LocalLink(store)], layout), iter((2.0, 1.0, 1.0, 2.0))

    def timed(run: Callable[[], object], _device: torch.device) -> float:
        run()
        return next(taken)

    monkeypatch.setattr(device_selector, "least_seconds", timed)
    found = [device_selector.scores_on_device(kv, layout, 2, torch.device("cpu")) for _ in range(2)]
    assert found == [False, True]
    store.close()
