"""Sessions that share blocks: each answers as a fresh session would, whatever the others do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from moorage.workers.errors import InvalidRequest
from moorage.workers.spec import (
    KEY_CODE_TOKENS,
    AnchorSpace,
    AnchorType,
    ContinueSession,
    ForkSession,
    MemorySpec,
    SamplingSpec,
    Segment,
    SegmentResult,
)
from tests.engine_driver import FULL, Driver, memory
from tests.tiny_models import TinyModel, build_tiny_checkpoint

LENGTH = 150
KEY_CODES = memory(sinks=8, window=24, topk_keys=16)
QUEST = memory(topk=2, sinks=8, window=24, dense_until=400)
CASES = [
    (FULL, AnchorType.QUEST, AnchorSpace.PLAIN),
    (QUEST, AnchorType.QUEST, AnchorSpace.ROTATED),
    (KEY_CODES, AnchorType.KEY_CODES, AnchorSpace.ROTATED),
]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return build_tiny_checkpoint("llama3", tmp_path_factory.mktemp("llama3"))


def driver_of(model: TinyModel, anchor_type: AnchorType, space: AnchorSpace) -> Driver:
    size = KEY_CODE_TOKENS if anchor_type.codes_keys else 8
    return Driver(
        model.directory,
        model.spec,
        block_size=size,
        anchor_type=anchor_type,
        anchor_space=space,
        num_pages=96,
    )


def prompt_of(model: TinyModel, shared: int = LENGTH, seed: int = 1) -> tuple[int, ...]:
    """A prompt that has its first tokens in common with all others."""
    first = np.random.default_rng(0).integers(2, model.spec.vocab_size, LENGTH)[:shared]
    rest = np.random.default_rng(seed).integers(2, model.spec.vocab_size, LENGTH + 10 - shared)
    return (*first.tolist(), *rest.tolist())


def used_pages(driver: Driver) -> int:
    return sum(store.stats().num_pages - store.stats().free_pages for store in driver.stores)


def forked(driver: Driver, model: TinyModel, axes: MemorySpec) -> int:
    """Session 1 has a prompt, and session 2 all full blocks of it. Returns the tokens of these."""
    driver.generate(prompt_of(model), axes, num_tokens=1, keep=True)
    driver.step(idles=(1,))
    before, size = used_pages(driver), driver.block_size
    num_blocks = (LENGTH + 10) // size
    driver.step(forks=(ForkSession(1, 2, num_blocks),))
    assert used_pages(driver) == before, "a fork takes no page"
    return num_blocks * size


def together(
    driver: Driver, asked: dict[int, tuple[tuple[int, ...], int]], axes: MemorySpec, num_tokens: int = 6
) -> dict[int, list[SegmentResult]]:
    """Answers of sessions that go on after some of their tokens, all in the same steps."""
    opens = tuple(
        ContinueSession(session_id, kept, len(prompt) + num_tokens, len(prompt), axes, SamplingSpec())
        for session_id, (prompt, kept) in asked.items()
    )
    segments = tuple(
        Segment(session_id, kept, prompt[kept:], sample=True) for session_id, (prompt, kept) in asked.items()
    )
    found: dict[int, list[SegmentResult]] = {session_id: [] for session_id in asked}
    for place in range(num_tokens):
        for result in driver.step(opens=opens, segments=segments):
            found[result.session_id].append(result)
        opens = ()
        segments = tuple(
            Segment(session_id, len(prompt) + place, (found[session_id][-1].token_id or 0,), sample=True)
            for session_id, (prompt, _) in asked.items()
        )
    return found


def assert_fresh(
    driver: Driver, got: Sequence[SegmentResult], prompt: tuple[int, ...], axes: MemorySpec
) -> None:
    want = driver.generate(prompt, axes, num_tokens=len(got), session_id=9)
    assert [r.token_id for r in got] == [r.token_id for r in want]
    np.testing.assert_allclose([r.logprob for r in got], [r.logprob for r in want], atol=1e-4)


@pytest.mark.parametrize(("axes", "anchor_type", "space"), CASES, ids=["full", "quest", "key codes"])
def test_both_go_on_from_inside_a_block_that_they_share(
    llama: TinyModel, axes: MemorySpec, anchor_type: AnchorType, space: AnchorSpace
) -> None:
    driver = driver_of(llama, anchor_type, space)
    forked(driver, llama, axes)
    cuts = {1: 101, 2: 77}
    prompts = {session_id: prompt_of(llama, cut, seed=session_id) for session_id, cut in cuts.items()}
    answers = together(driver, {one: (prompts[one], cuts[one]) for one in cuts}, axes)
    for session_id, answer in answers.items():
        assert_fresh(driver, answer, prompts[session_id], axes)
    driver.step(drops=(1, 2))
    assert used_pages(driver) == 0


@pytest.mark.parametrize(("axes", "anchor_type", "space"), CASES, ids=["full", "quest", "key codes"])
def test_a_fork_outlives_the_session_that_it_came_from(
    llama: TinyModel, axes: MemorySpec, anchor_type: AnchorType, space: AnchorSpace
) -> None:
    driver = driver_of(llama, anchor_type, space)
    tokens = forked(driver, llama, axes)
    driver.step(drops=(1,))
    assert used_pages(driver) == tokens // driver.block_size
    driver.generate(
        prompt_of(llama, 0, seed=5), axes, session_id=3, keep=True
    )  # takes the pages that are free
    prompt = (*prompt_of(llama)[:tokens], 7, 8, 9)
    assert_fresh(driver, together(driver, {2: (prompt, tokens)}, axes)[2], prompt, axes)


def test_a_fork_of_a_fork_shares_with_both(llama: TinyModel) -> None:
    driver = driver_of(llama, AnchorType.QUEST, AnchorSpace.PLAIN)
    tokens = forked(driver, llama, FULL)
    before = used_pages(driver)
    driver.step(forks=(ForkSession(2, 3, 5), ForkSession(3, 4, 4)), drops=(3,))
    assert used_pages(driver) == before
    driver.step(drops=(1, 2))
    assert used_pages(driver) == 4
    prompt = prompt_of(llama, 32, seed=4)
    assert_fresh(driver, together(driver, {4: (prompt, 32)}, FULL)[4], prompt, FULL)
    assert tokens > 32


def test_a_plan_that_comes_again_forks_once(llama: TinyModel) -> None:
    driver = driver_of(llama, AnchorType.QUEST, AnchorSpace.PLAIN)
    forked(driver, llama, FULL)
    before = used_pages(driver)
    driver.step(forks=(ForkSession(1, 2, 3), ForkSession(77, 78, 3)))
    assert used_pages(driver) == before
    assert driver.worker.engine.sessions.keys() == {1, 2}


def test_only_sealed_blocks_are_shared(llama: TinyModel) -> None:
    driver = driver_of(llama, AnchorType.QUEST, AnchorSpace.PLAIN)
    forked(driver, llama, FULL)
    with pytest.raises(InvalidRequest, match="blocks to share, 10 are sealed"):
        driver.stores[0].fork(1, 8, 11)
