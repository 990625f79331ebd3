"""A step raises what nobody foresees: who fails, what the worker still holds, and that it goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from moorage.workers.errors import Internal, ResourceExhausted, Unavailable
from moorage.workers.gpu.attention.chunk import ChunkAttention
from moorage.workers.gpu.engine.batch import DecodeStep
from moorage.workers.gpu.model import decoder
from moorage.workers.spec import AnchorType, ContinueSession, SamplingSpec, Segment, SegmentResult, StepPlan
from tests.engine_driver import FULL, Driver, memory
from tests.tiny_models import TinyModel, build_tiny_checkpoint
from tests.workers.gpu.engine.test_engine import prompt_of

NO_HOST_MEMORY = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"
)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return build_tiny_checkpoint("llama3", tmp_path_factory.mktemp("llama3"))


@pytest.fixture
def driver(llama: TinyModel) -> Driver:
    return Driver(llama.directory, llama.spec)


def begin(driver: Driver, prompts: dict[int, list[int]]) -> StepPlan:
    """A plan that opens a session for each prompt and reads all of it."""
    opens = tuple(driver.open(session_id, prompt) for session_id, prompt in prompts.items())
    segments = tuple(Segment(session_id, 0, tuple(prompt), True) for session_id, prompt in prompts.items())
    return StepPlan(1, opens=opens, segments=segments)


def attention_fails(driver: Driver, monkeypatch: pytest.MonkeyPatch, session_id: int) -> None:
    """From now on the attention of one session divides by zero in its second layer."""
    attend = ChunkAttention.__call__

    def broken(self: ChunkAttention, session: Any, layer: int, *tensors: torch.Tensor) -> torch.Tensor:
        if session.session_id == session_id and layer == 1:
            raise ZeroDivisionError("in attention")
        return attend(self, session, layer, *tensors)

    monkeypatch.setattr(ChunkAttention, "__call__", broken)

    def fail(step: DecodeStep, layer: int, _attended: object) -> None:
        if step.session.session_id == session_id and layer == 1:
            raise ZeroDivisionError("in attention")

    driver.worker.engine.observe(fail)


def fail_with(error: Exception) -> Callable[..., Any]:
    def broken(*_: Any, **__: Any) -> Any:
        raise error

    return broken


def held_sessions(driver: Driver) -> list[int]:
    return [store.stats().num_sessions for store in driver.stores]


def by_session(results: tuple[SegmentResult, ...]) -> dict[int, SegmentResult]:
    return {result.session_id: result for result in results}


def test_only_the_session_that_raises_fails_and_the_others_get_the_same_tokens(
    llama: TinyModel, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = {number: prompt_of(llama, 40 + number) for number in (1, 2, 3)}
    want = {
        number: Driver(llama.directory, llama.spec).generate(prompts[number], num_tokens=1)
        for number in (1, 3)
    }
    attention_fails(driver, monkeypatch, 2)
    results = by_session(driver.worker.step(begin(driver, prompts)).segments)
    assert {number: results[number].token_id for number in (1, 3)} == {
        number: result[0].token_id for number, result in want.items()
    }
    error = results[2].error
    assert isinstance(error, Internal)
    assert "ZeroDivisionError: in attention" in str(error)
    assert "in broken" in error.trace
    driver.step(drops=(2,), segments=(Segment(1, 41, (results[1].token_id or 0,), True),))
    assert held_sessions(driver) == [2, 2]


def test_a_session_that_can_not_be_run_again_fails_with_the_step(
    llama: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(llama.directory, llama.spec, anchor_type=AnchorType.DYNAMIC)
    axes = memory(topk=2, execution_block=0)
    counted, plain = prompt_of(llama, 200), prompt_of(llama, 30)
    opens = (driver.open(1, counted, axes), driver.open(2, plain, FULL), driver.open(3, plain, FULL))
    driver.step(opens=opens, segments=(Segment(1, 0, tuple(counted[:150]), False),))
    attention_fails(driver, monkeypatch, 3)
    rest = Segment(1, 150, tuple(counted[150:]), True)
    others = tuple(Segment(number, 0, tuple(plain), True) for number in (2, 3))
    results = by_session(driver.worker.step(StepPlan(2, segments=(rest, *others))).segments)
    assert results[2].token_id is not None
    assert isinstance(results[3].error, Internal)


def test_a_step_that_raises_as_a_whole_leaves_no_trace_and_the_others_as_they_were(
    llama: TinyModel, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt, other = prompt_of(llama, 50), prompt_of(llama, 30)
    want = [r.token_id for r in driver.generate(prompt, num_tokens=6)]
    first = [r.token_id for r in driver.generate(prompt, num_tokens=1, keep=True)]
    with monkeypatch.context() as broken:
        broken.setattr(decoder, "linear", fail_with(KeyError("weights")))
        with pytest.raises(KeyError):
            driver.worker.step(begin(driver, {2: other, 3: other}))
    assert held_sessions(driver) == [1, 1]
    driver.worker.engine.check_integrity()
    token_id, found = first[-1], list(first)
    for place in range(50, 55):
        (result,) = driver.step(segments=(Segment(1, place, (token_id or 0,), True),))
        token_id = result.token_id
        found.append(token_id)
    assert found == want


@pytest.mark.parametrize("error", [NO_HOST_MEMORY, MemoryError("Unable to allocate 3 GiB")])
def test_want_of_host_memory_is_told_as_such(
    llama: TinyModel, driver: Driver, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(decoder, "linear", fail_with(error))
        (result,) = driver.worker.step(begin(driver, {1: prompt_of(llama, 50)})).segments
    assert isinstance(result.error, ResourceExhausted)
    with monkeypatch.context() as broken:
        broken.setattr(driver.worker.engine, "_begin", fail_with(error))
        with pytest.raises(ResourceExhausted, match="the worker has no memory left for a step"):
            driver.worker.step(begin(driver, {2: prompt_of(llama, 50)}))
    driver.step(drops=(1,))
    assert held_sessions(driver) == [0, 0]


def test_what_a_session_took_before_it_was_recorded_is_free_again(
    llama: TinyModel, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = driver.worker.engine
    with monkeypatch.context() as broken:
        broken.setattr(driver.worker._kv, "open", fail_with(OSError("no mailbox")))
        with pytest.raises(OSError, match="no mailbox"):
            driver.worker.step(begin(driver, {1: prompt_of(llama, 50)}))
    assert engine.num_free_slots == engine.num_slots
    assert len(driver.generate(prompt_of(llama, 50), num_tokens=2)) == 2


def test_a_worker_that_can_not_be_sure_of_its_state_says_so(
    llama: TinyModel, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder, "linear", fail_with(KeyError("weights")))
    monkeypatch.setattr(driver.worker.engine, "check_integrity", fail_with(RuntimeError("slots disagree")))
    with pytest.raises(Unavailable, match="can't go on after a failed step"):
        driver.worker.step(begin(driver, {1: prompt_of(llama, 50)}))


def test_an_idle_session_holds_its_blocks_in_dram_alone_and_goes_on_with_the_same_tokens(
    llama: TinyModel, driver: Driver
) -> None:
    prompt, engine = prompt_of(llama, 50), driver.worker.engine
    want = driver.generate(prompt, num_tokens=9)
    driver.generate(prompt, num_tokens=4, keep=True)
    driver.step(idles=(1, 77))
    assert engine.num_free_slots == engine.num_slots
    blocks = driver.stores[0].layout.num_blocks(53)
    assert sum(store.stats().num_pages - store.stats().free_pages for store in driver.stores) == blocks
    driver.step(idles=(1,))
    longer = [*prompt, *(r.token_id or 0 for r in want[:4])]
    again = driver.generate(longer, num_tokens=5, continued=53)
    assert [r.token_id for r in again] == [r.token_id for r in want[4:]]


@pytest.mark.parametrize("anchor_type", [AnchorType.QUEST, AnchorType.DYNAMIC, AnchorType.REPR_TOPK])
def test_being_idle_between_two_prompts_changes_no_token(llama: TinyModel, anchor_type: AnchorType) -> None:
    prompt, axes = prompt_of(llama, 200), memory(topk=3, execution_block=32, sinks=16)
    answers = []
    for idles in ((), (1,)):
        driver = Driver(llama.directory, llama.spec, anchor_type=anchor_type)
        driver.generate(prompt[:160], axes, (64,), num_tokens=3, keep=True)
        driver.step(idles=idles)
        answers.append(driver.generate(prompt, axes, (32,), num_tokens=8, continued=128))
    plain, idle = ([(r.token_id, r.logprob) for r in answer] for answer in answers)
    assert plain == idle


def test_sessions_start_at_the_shard_that_they_are_told(llama: TinyModel, driver: Driver) -> None:
    prompt = prompt_of(llama, 20)
    for session_id, first_shard in [(1, 0), (2, 1), (3, 1)]:
        opening = replace(driver.open(session_id, prompt, max_new_tokens=4), first_shard=first_shard)
        driver.step(opens=(opening,), segments=(Segment(session_id, 0, tuple(prompt), True),))
    assert [store.stats().num_pages - store.stats().free_pages for store in driver.stores] == [2, 4]
    anew = ContinueSession(3, 0, 24, 20, FULL, SamplingSpec())
    driver.step(opens=(anew,), segments=(Segment(3, 0, tuple(prompt), True),))
    assert [store.stats().num_pages - store.stats().free_pages for store in driver.stores] == [2, 4]
