"""Drafts that one exact pass verifies: the answer is that of full attention, whatever was drafted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moorage.kernels.numba_flags import always_parallel
from moorage.workers.spec import (
    AnchorSpace,
    AnchorType,
    ContinueSession,
    MemorySpec,
    Positions,
    Preselect,
    SamplingSpec,
    Segment,
    SegmentResult,
)
from tests.engine_driver import Driver, memory
from tests.tiny_models import TinyModel, build_tiny_checkpoint

DRAFTING: dict[str, Any] = {"topk": 1, "window": 16, "sinks": 16, "verify": 4}
"""So little is attended that drafts are often wrong."""
VARIED = SamplingSpec(repetition_penalty=3.0, presence_penalty=2.0)
"""Greedy; without penalties the tiny models repeat one token, which any draft gets right."""


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return build_tiny_checkpoint("llama3", tmp_path_factory.mktemp("llama3"))


@pytest.fixture(scope="module")
def driver(llama: TinyModel) -> Driver:
    return Driver(llama.directory, llama.spec)


def prompt_of(driver: Driver, length: int, seed: int = 0) -> list[int]:
    found: list[int] = np.random.default_rng(seed).integers(2, driver.spec.vocab_size, length).tolist()
    return found


@dataclass
class Answer:
    """One session as a coordinator drives it: its next segment begins with its last token."""

    driver: Driver
    session_id: int
    prompt: Sequence[int]
    axes: MemorySpec
    count: int
    sampling: SamplingSpec = VARIED
    results: list[SegmentResult] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top: list[tuple[tuple[int, float], ...]] = field(default_factory=list)

    @property
    def opening(self) -> Any:
        return self.driver.open(self.session_id, self.prompt, self.axes, self.count, self.sampling)

    @property
    def segment(self) -> Segment:
        if not self.tokens:
            return Segment(self.session_id, 0, tuple(self.prompt), sample=True)
        return Segment(
            self.session_id, len(self.prompt) + len(self.tokens) - 1, (self.tokens[-1],), sample=True
        )

    def take(self, result: SegmentResult) -> None:
        self.results.append(result)
        if result.token_id is None:
            return
        assert result.logprob is not None
        first = (result.token_id, result.logprob, result.top_logprobs)
        for token, logprob, top in (
            first,
            *((f.token_id, f.logprob, f.top_logprobs) for f in result.following),
        ):
            self.tokens.append(token)
            self.logprobs.append(logprob)
            self.top.append(top)

    @property
    def ended(self) -> bool:
        return len(self.tokens) >= self.count

    @property
    def drafted(self) -> int:
        return sum(result.num_drafted for result in self.results)

    @property
    def accepted(self) -> int:
        return sum(len(result.following) for result in self.results)


def run(*answers: Answer, drop: bool = True) -> None:
    """All of them in the same steps, each to its end."""
    driver, opens = answers[0].driver, tuple(answer.opening for answer in answers)
    while live := [answer for answer in answers if not answer.ended]:
        results = driver.step(opens=opens, segments=tuple(answer.segment for answer in live))
        by_session = {result.session_id: result for result in results}
        for answer in live:
            answer.take(by_session[answer.session_id])
        opens = ()
    if drop:
        driver.step(drops=tuple(answer.session_id for answer in answers))


def both(
    driver: Driver, prompt: Sequence[int], count: int = 24, sampling: SamplingSpec = VARIED, **axes: Any
) -> tuple[Answer, Answer]:
    """(full attention's answer, the answer of verified drafts) to a prompt."""
    own = {
        name: axes[name] for name in ("scheme", "window", "rope", "rebase_every", "mscale") if name in axes
    }
    full = Answer(driver, 1, prompt, memory(**{"window": 16, **own}), count, sampling)
    verified = Answer(driver, 2, prompt, memory(**{**DRAFTING, **axes}), count, sampling)
    run(full)
    run(verified)
    return full, verified


@pytest.mark.parametrize("verify", [1, 4, 15])
def test_gives_the_tokens_and_the_log_probabilities_of_full_attention(driver: Driver, verify: int) -> None:
    drafted = accepted = 0
    for seed in range(6):
        sampling = SamplingSpec() if seed == 0 else VARIED
        full, verified = both(driver, prompt_of(driver, 90 + 17 * seed, seed), 30, sampling, verify=verify)
        assert verified.tokens == full.tokens
        np.testing.assert_allclose(verified.logprobs, full.logprobs, atol=1e-5)
        drafted, accepted = drafted + verified.drafted, accepted + verified.accepted
    assert 0 < accepted < drafted


SELECTIONS: dict[str, dict[str, Any]] = {
    "several-steps": {"token_step": 3, "layer_step": 2, "topk": 2},
    "dense-layers": {"dense_layers": 1},
    "blocks-of-the-prompt": {"preselect": Preselect.PROMPT, "preselect_blocks": 3},
    "one-token-window": {"window": 1},
    "until-a-length": {"dense_until": 130},
}


@pytest.mark.parametrize("name", SELECTIONS)
def test_whatever_selects_the_answer_is_that_of_full_attention(driver: Driver, name: str) -> None:
    full, verified = both(driver, prompt_of(driver, 121, 3), 40, **SELECTIONS[name])
    assert verified.tokens == full.tokens
    assert verified.drafted > verified.accepted


ENGINES: dict[str, dict[str, Any]] = {
    "device-slots": {"in_place": False},
    "few-slots": {"in_place": False, "max_cached_block": 1},
    "hybrid": {"in_place": False, "attend_on": "cpu"},
    "prefetch": {"in_place": False, "prefetch": True},
    "scored-on-the-device": {"in_place": False, "score_on": "device"},
    "rotated-anchors": {"anchor_space": AnchorSpace.ROTATED},
    "received-attention": {"anchor_type": AnchorType.REPR_TOPK},
    "dynamic-anchors": {"anchor_type": AnchorType.DYNAMIC},
    "one-store": {"num_shards": 1},
    "blocks-of-4": {"block_size": 4},
}


@pytest.mark.parametrize("name", ENGINES)
def test_every_backend_and_index_verifies(llama: TinyModel, name: str) -> None:
    driver = Driver(llama.directory, llama.spec, **ENGINES[name])
    full, verified = both(driver, prompt_of(driver, 150, 5), 30)
    assert verified.tokens == full.tokens
    np.testing.assert_allclose(verified.logprobs, full.logprobs, atol=1e-4)
    assert verified.drafted > verified.accepted


@pytest.mark.parametrize("in_place", [True, False])
def test_single_keys_draft(llama: TinyModel, in_place: bool) -> None:
    driver = Driver(
        llama.directory,
        llama.spec,
        anchor_type=AnchorType.KEY_CODES,
        anchor_space=AnchorSpace.ROTATED,
        in_place=in_place,
    )
    full, verified = both(driver, prompt_of(driver, 150, 5), 40, topk=None, topk_keys=6)
    assert verified.tokens == full.tokens
    assert verified.drafted > verified.accepted


@pytest.mark.parametrize("scheme", [Positions.CLAMPED, Positions.DCA])
def test_verifies_under_the_positions_of_the_session(driver: Driver, scheme: Positions) -> None:
    axes: dict[str, Any] = {"scheme": scheme}
    if scheme is Positions.DCA:
        full_axes = {"pretraining_length": 64, "dca_chunk": 48}
        prompt = prompt_of(driver, 130, 4)
        full = Answer(driver, 1, prompt, memory(window=16, scheme=scheme, **full_axes), 40)
        verified = Answer(driver, 2, prompt, memory(**DRAFTING, scheme=scheme, **full_axes), 40)
        run(full)
        run(verified)
    else:
        full, verified = both(driver, prompt_of(driver, 130, 4), 40, **axes)
    assert verified.tokens == full.tokens
    assert verified.drafted > verified.accepted


def test_a_round_ends_where_dynamic_positions_adopt_a_new_length(tmp_path: Path) -> None:
    rope = {"rope_theta": 10000.0, "rope_type": "dynamic", "factor": 2.0}
    model = build_tiny_checkpoint("llama2", tmp_path, rope=rope, head_dim=64, max_position_embeddings=64)
    driver = Driver(model.directory, model.spec)
    for rebase_every in (1, 6):
        full, verified = both(driver, prompt_of(driver, 100), 40, rebase_every=rebase_every)
        assert verified.tokens == full.tokens
        assert (verified.drafted == 0) == (rebase_every == 1)


def test_sliding_windows_are_taken_back_with_rejected_drafts(tmp_path: Path) -> None:
    model = build_tiny_checkpoint("gemma2", tmp_path)
    for in_place in (True, False):
        driver = Driver(model.directory, model.spec, in_place=in_place)
        full, verified = both(driver, prompt_of(driver, 150, 7), 40)
        assert verified.tokens == full.tokens
        assert verified.drafted > verified.accepted


@pytest.mark.parametrize("seed", range(3))
def test_seeded_draws_are_those_of_full_attention(driver: Driver, seed: int) -> None:
    sampling = SamplingSpec(
        temperature=1.5, top_p=0.95, seed=seed, num_logprobs=3, repetition_penalty=1.3, frequency_penalty=0.2
    )
    full, verified = both(driver, prompt_of(driver, 140, seed), 30, sampling)
    assert verified.tokens == full.tokens
    np.testing.assert_allclose(verified.logprobs, full.logprobs, atol=1e-5)
    for mine, other in zip(verified.top, full.top, strict=True):
        assert [token for token, _ in mine] == [token for token, _ in other]
    assert verified.accepted > 0


def test_sessions_side_by_side(driver: Driver) -> None:
    """Verified ones of several lengths beside one that selects and one of full attention, in the same steps."""
    prompts = [prompt_of(driver, 80 + 30 * i, i) for i in range(6)]
    alone = [Answer(driver, 1, prompt, memory(window=16), 30) for prompt in prompts]
    for answer in alone:
        run(answer)
    selected = Answer(driver, 1, prompts[5], memory(**{**DRAFTING, "verify": 0}), 30)
    run(selected)
    together = [
        Answer(driver, 10 + i, prompt, memory(**{**DRAFTING, "verify": 1 + 3 * i}), 30)
        for i, prompt in enumerate(prompts[:4])
    ]
    others = [
        Answer(driver, 20, prompts[4], memory(window=16), 30),
        Answer(driver, 21, prompts[5], memory(**{**DRAFTING, "verify": 0}), 30),
    ]
    run(*together, *others)
    for answer, expected in zip((*together, *others), (*alone[:5], selected), strict=True):
        assert answer.tokens == expected.tokens
    # A session that does not draft gets a token in every step.
    assert all(result.token_id is not None for other in others for result in other.results)


def test_verified_positions_are_computed_as_generated_tokens_beside_any_other_work(driver: Driver) -> None:
    """Beside a prompt and beside other verified sessions: the log-probabilities stay the same."""
    prompts = [prompt_of(driver, 150, seed) for seed in range(3)]
    alone = [Answer(driver, 1, prompt, memory(**{**DRAFTING, "verify": 15}), 20) for prompt in prompts]
    for answer in alone:
        run(answer)
    together = [
        Answer(driver, 5 + i, prompt, memory(**{**DRAFTING, "verify": 15}), 20)
        for i, prompt in enumerate(prompts)
    ]
    other = prompt_of(driver, 3000, 8)
    driver.step(opens=(driver.open(9, other),))
    opens, read = tuple(answer.opening for answer in together), 0
    while live := [answer for answer in together if not answer.ended]:
        chunk = Segment(9, read, tuple(other[read : read + 20]), sample=False)
        results = driver.step(opens=opens, segments=(*(answer.segment for answer in live), chunk))
        by_session = {result.session_id: result for result in results}
        for answer in live:
            answer.take(by_session[answer.session_id])
        opens, read = (), read + 20
    driver.step(drops=(5, 6, 7, 9))
    for answer, expected in zip(together, alone, strict=True):
        assert answer.tokens == expected.tokens
        np.testing.assert_allclose(answer.logprobs, expected.logprobs, atol=1e-5)


def test_the_tokens_asked_for_are_not_exceeded(driver: Driver) -> None:
    """The last rounds are shorter; no step leaves the pages that were reserved."""
    for count in range(1, 9):
        full, verified = both(driver, prompt_of(driver, 127), count)
        assert len(verified.tokens) == count
        assert verified.tokens == full.tokens


def test_drafts_leave_no_trace_in_what_is_kept(driver: Driver) -> None:
    """A session that is idle in the midst of a round holds its answer alone, and goes on from there."""
    prompt, more = prompt_of(driver, 120), prompt_of(driver, 20, 9)
    verified = Answer(driver, 2, prompt, memory(**DRAFTING), 40)
    opens: tuple[Any, ...] = (verified.opening,)
    while len(verified.tokens) < 9 or verified.results[-1].token_id is not None:
        (result,) = driver.step(opens=opens, segments=(verified.segment,))
        verified.take(result)
        opens = ()
    held = len(prompt) + len(verified.tokens) - 1
    driver.step(idles=(2,))
    assert driver.worker.engine.sessions[2].num_tokens == held
    longer = [*prompt, *verified.tokens[:-1], *more]
    opening = ContinueSession(
        2, held, len(longer) + 12, len(longer), memory(**DRAFTING), VARIED, longer[:held]
    )
    goes_on = Answer(driver, 2, longer, memory(**DRAFTING), 12)
    (result,) = driver.step(opens=(opening,), segments=(Segment(2, held, tuple(more), sample=True),))
    goes_on.take(result)
    while not goes_on.ended:
        (result,) = driver.step(segments=(goes_on.segment,))
        goes_on.take(result)
    driver.step(drops=(2,))
    fresh = Answer(driver, 3, longer, memory(window=16), 12)
    run(fresh)
    assert goes_on.tokens == fresh.tokens


def test_verifies_by_several_threads(driver: Driver) -> None:
    with always_parallel():
        full, verified = both(driver, prompt_of(driver, 300, 1), 20)
    assert verified.tokens == full.tokens
    np.testing.assert_allclose(verified.logprobs, full.logprobs, atol=1e-5)


def test_a_session_that_attends_everything_drafts_nothing(driver: Driver) -> None:
    full, verified = both(driver, prompt_of(driver, 100), 10, topk=None)
    assert verified.tokens == full.tokens
    assert len(verified.results) == 10


def test_what_occurred_before_is_drafted_without_a_step(driver: Driver) -> None:
    """Greedy, the tiny model repeats itself; its selection would not draft before the length `dense_until`."""
    full, verified = both(driver, prompt_of(driver, 100), 40, SamplingSpec(), dense_until=10_000)
    assert verified.tokens == full.tokens
    np.testing.assert_allclose(verified.logprobs, full.logprobs, atol=1e-5)
    assert verified.accepted > 20
    assert all(result.token_id is not None for result in verified.results)
    assert len(verified.results) < len(full.results) // 2


def test_what_occurred_in_kept_tokens_is_drafted_too(driver: Driver) -> None:
    prompt, axes = prompt_of(driver, 60), memory(**{**DRAFTING, "dense_until": 10_000})
    first = Answer(driver, 2, prompt, axes, 30, SamplingSpec())
    run(first, drop=False)
    # The model goes on repeating what the first answer ended with.
    held = [*prompt, *first.tokens[:-1]]
    opening = ContinueSession(2, len(held), len(held) + 20, len(held) + 1, axes, SamplingSpec(), held)
    (result,) = driver.step(
        opens=(opening,), segments=(Segment(2, len(held), first.tokens[-1:], sample=True),)
    )
    (later,) = driver.step(segments=(Segment(2, len(held) + 1, (result.token_id,), sample=True),))
    driver.step(drops=(2,))
    assert later.num_drafted == 8


def test_a_greedy_draft_ends_where_it_is_not_sure(driver: Driver) -> None:
    """No token of the tiny model is likely: rounds of greedy drafts have one, and others as many as are asked for."""
    prompt = prompt_of(driver, 140)
    greedy = Answer(driver, 2, prompt, memory(**{**DRAFTING, "verify": 7}), 12)
    run(greedy)
    drawn = Answer(
        driver, 2, prompt, memory(**{**DRAFTING, "verify": 7}), 12, SamplingSpec(temperature=9.0, seed=3)
    )
    run(drawn)
    assert {result.num_drafted for result in greedy.results} <= {0, 1}
    assert max(result.num_drafted for result in drawn.results) == 7
