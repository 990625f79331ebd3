"""The device runs out of memory in the middle of a step: fewer slots, the same tokens, and at worst one failure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from moorage.workers.errors import ResourceExhausted
from moorage.workers.gpu.attention import chunk, stored_blocks
from moorage.workers.gpu.model import decoder
from moorage.workers.spec import AnchorType, HeadSelectMode, Segment, StepPlan
from tests.engine_driver import Driver, memory
from tests.tiny_models import TinyModel, build_tiny_checkpoint
from tests.workers.gpu.engine.test_engine import prompt_of
from tests.workers.gpu.test_overlap import emulated

CHOSEN = memory(topk=3, execution_block=32, sinks=16)
PLACES = {
    "decode attention": (stored_blocks, "attend_blocks"),
    "prefill attention": (chunk, "attend_dense"),
    "linear layers": (decoder, "linear"),
}
Exhaust = Callable[[str, set[int]], list[int]]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return build_tiny_checkpoint("llama3", tmp_path_factory.mktemp("llama3"))


@pytest.fixture
def exhaust(monkeypatch: pytest.MonkeyPatch) -> Exhaust:
    """`exhaust(place, calls)`: these calls of it find no memory; returns the list of calls so far."""

    def at(place: str, calls: set[int]) -> list[int]:
        module, name = PLACES[place]
        original, seen = getattr(module, name), []

        def allocate(*args: Any, **kwargs: Any) -> Any:
            seen.append(len(seen))
            if seen[-1] in calls:
                raise torch.OutOfMemoryError(f"no memory in call {seen[-1]}")
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, allocate)
        return seen

    return at


def drive(llama: TinyModel, **options: Any) -> Driver:
    return Driver(llama.directory, llama.spec, num_slots=1024, in_place=False, **options)


@pytest.mark.parametrize("copies", [None, emulated], ids=["direct", "emulated"])
@pytest.mark.parametrize("place", list(PLACES))
def test_a_step_is_tried_again_with_fewer_slots(
    llama: TinyModel, exhaust: Exhaust, place: str, copies: Any
) -> None:
    prompt = prompt_of(llama, 180)
    want = [r.token_id for r in drive(llama).generate(prompt, CHOSEN, (64,), 12)]
    driver = drive(llama, copies=copies)
    seen = exhaust(place, {7})
    assert [r.token_id for r in driver.generate(prompt, CHOSEN, (64,), 12)] == want
    assert len(seen) > 7
    assert driver.worker.engine.slots_bytes < 1024 * driver.stores[0].layout.block_bytes


@pytest.mark.parametrize("before_end", [1, 4, 8, 11])
@pytest.mark.parametrize("place", ["decode attention", "linear layers"])
def test_a_step_that_uses_a_selection_again_attends_the_same_when_tried_again(
    llama: TinyModel, exhaust: Exhaust, place: str, before_end: int
) -> None:
    prompt = prompt_of(llama, 180)
    axes = CHOSEN.replace(token_step=3, head_select_mode=HeadSelectMode.SEPARATE)
    seen = exhaust(place, set())
    want = drive(llama).generate(prompt, axes, (64,), 12)
    exhaust(place, {len(seen) - before_end})
    assert drive(llama).generate(prompt, axes, (64,), 12) == want


def test_when_fewer_slots_do_not_help_the_largest_fails_alone(llama: TinyModel, exhaust: Exhaust) -> None:
    driver = drive(llama)
    short, long = prompt_of(llama, 20), prompt_of(llama, 100, 1)
    want = driver.generate(short, CHOSEN, (64,), 4)
    opens = driver.open(2, short, CHOSEN), driver.open(3, long, CHOSEN)
    exhaust("linear layers", {0, 1})
    segments = Segment(2, 0, tuple(short), sample=True), Segment(3, 0, tuple(long), sample=True)
    results = {
        r.session_id: r for r in driver.worker.step(StepPlan(1, opens=opens, segments=segments)).segments
    }
    assert results[2].token_id == want[0].token_id
    assert isinstance(results[3].error, ResourceExhausted)
    driver.worker.step(StepPlan(2, drops=(2, 3)))
    driver.worker.engine.check_integrity()
    assert [r.token_id for r in driver.generate(long, CHOSEN, (64,), 4)] == [
        r.token_id for r in drive(llama).generate(long, CHOSEN, (64,), 4)
    ]


def test_a_session_without_memory_for_its_attention_fails_and_others_go_on(
    llama: TinyModel, exhaust: Exhaust
) -> None:
    driver, alone = drive(llama), drive(llama)
    prompts = [prompt_of(llama, 150, seed) for seed in (1, 2)]
    want = alone.generate(prompts[1], CHOSEN, (150,), 2)
    opens = tuple(driver.open(i, p, CHOSEN) for i, p in enumerate(prompts))
    segments = tuple(Segment(i, 0, tuple(p), sample=True) for i, p in enumerate(prompts))
    exhaust("prefill attention", {0, 1})
    results = {
        r.session_id: r for r in driver.worker.step(StepPlan(1, opens=opens, segments=segments)).segments
    }
    assert isinstance(results[0].error, ResourceExhausted)
    assert "chunk_size" in str(results[0].error)
    assert results[1].token_id == want[0].token_id


def test_counted_attention_is_never_counted_twice(llama: TinyModel, exhaust: Exhaust) -> None:
    """Sessions whose anchors are made of received attention fail instead of repeating a step."""
    driver = drive(llama, anchor_type=AnchorType.REPR_TOPK)
    prompt = prompt_of(llama, 150)
    exhaust("linear layers", {9})
    with pytest.raises(ResourceExhausted):
        driver.generate(prompt, CHOSEN, (64,), 4)
    driver.worker.step(StepPlan(9, drops=(1,)))
    assert len(driver.generate(prompt, CHOSEN, (64,), 4)) == 4
