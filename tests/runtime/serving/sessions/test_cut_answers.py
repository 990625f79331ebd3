"""Answers that were cut go on as if they had not been, in memory and after a restart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from moorage.runtime.serving.coordinator import Coordinator
from moorage.runtime.serving.protocol import Finished
from moorage.runtime.serving.session_cache import StoredKv
from moorage.runtime.serving.sessions.cut_answers import Draw, draw_of, drawn_before
from moorage.workers.spec import (
    AnchorType,
    KvLayout,
    KvType,
    MemorySpec,
    Preselect,
    RopeSpec,
    SamplingSpec,
)
from moorage.workers.token_ids import TokenIds
from tests.counting_executor import collect, token_ids
from tests.engine_driver import memory
from tests.runtime.serving.sessions.conftest import Serving

SELECTING = (
    "memory.dense_until=0",
    "long_context.second_select_num=3",
    "long_context.local_windows_len=64",
)
DOCUMENT = [(7 * place) % 1000 for place in range(600)]
WARM = SamplingSpec(temperature=1.0, seed=7, presence_penalty=1.5, frequency_penalty=0.5)
DRAWS = {"greedy": SamplingSpec(), "with a seed": SamplingSpec(temperature=1.0, seed=7), "penalties": WARM}
LAYOUT = KvLayout(num_layers=2, num_kv_heads=2, head_dim=16, block_size=8)
EXACT = memory()


async def answer(
    coordinator: Coordinator, prompt: list[int], session: str, count: int, sampling: SamplingSpec
) -> tuple[list[int], int]:
    """Tokens, and how many of the prompt's needed no prefill."""
    events = await collect(
        coordinator,
        prompt=prompt,
        max_new_tokens=count,
        session=session,
        sampling=sampling,
        ignore_eos=True,
    )
    assert isinstance(events[-1], Finished)
    return token_ids(events), events[-1].usage.cached_tokens


@pytest.mark.parametrize("sampling", DRAWS.values(), ids=DRAWS)
async def test_an_answer_that_was_cut_twice_goes_on_with_the_same_tokens(
    serving: Serving, sampling: SamplingSpec
) -> None:
    async with serving(*SELECTING) as coordinator:
        whole, _ = await answer(coordinator, DOCUMENT, "whole", 24, sampling)
        prompt, cut = list(DOCUMENT), []
        for count in (1, 9, 14):
            tokens, cached = await answer(coordinator, prompt, "cut", count, sampling)
            assert not cut or cached == len(prompt) - 1
            cut += tokens
            prompt = DOCUMENT + cut
        assert cut == whole


@pytest.mark.parametrize("sampling", DRAWS.values(), ids=DRAWS)
async def test_after_a_restart_it_goes_on_without_a_prefill(serving: Serving, sampling: SamplingSpec) -> None:
    async with serving(*SELECTING) as before:
        whole, _ = await answer(before, DOCUMENT, "whole", 20, sampling)
        cut, _ = await answer(before, DOCUMENT, "cut", 8, sampling)
        await before.sessions.save("cut")
    async with serving(*SELECTING) as after:
        await after.sessions.load("cut")
        rest, cached = await answer(after, DOCUMENT + cut, "cut", 12, sampling)
        assert cached == len(DOCUMENT) + 7
        assert cut + rest == whole


async def test_another_seed_reads_the_answer_as_a_prompt(serving: Serving) -> None:
    """Tokens that selected what they attended have other keys and values than the same tokens of a prompt."""
    async with serving(*SELECTING) as coordinator:
        cut, _ = await answer(coordinator, DOCUMENT, "cut", 40, DRAWS["with a seed"])
        other = replace(DRAWS["with a seed"], seed=8)
        rest, cached = await answer(coordinator, DOCUMENT + cut, "cut", 6, other)
        assert cached <= len(DOCUMENT)
        assert rest == (await answer(coordinator, DOCUMENT + cut, "fresh", 6, other))[0]


async def test_without_a_name_an_answer_is_read_as_a_prompt(serving: Serving) -> None:
    """What is left of a request without a session may be gone, and must make no difference."""
    greedy: dict[str, Any] = {"sampling": SamplingSpec(), "ignore_eos": True, "max_new_tokens": 40}
    async with serving(*SELECTING) as coordinator:
        cut = token_ids(await collect(coordinator, prompt=DOCUMENT, **greedy))
        asked = {**greedy, "prompt": DOCUMENT + cut}
        events = await collect(coordinator, **asked)
        assert isinstance(events[-1], Finished)
        assert events[-1].usage.cached_tokens <= len(DOCUMENT)
        assert token_ids(events) == token_ids(await collect(coordinator, session="fresh", **asked))


def stored(memory: MemorySpec = EXACT) -> StoredKv:
    """A prompt of 1, 2, 3 and the answer 4, 5, of which 5 has no keys and values."""
    return StoredKv(TokenIds([1, 2, 3, 4]), 3, memory, draw=Draw(SamplingSpec(temperature=1.0, seed=7), 5))


def test_only_the_same_draw_of_the_same_tokens_goes_on() -> None:
    same = SamplingSpec(temperature=1.0, seed=7, num_logprobs=4)
    assert drawn_before(stored(), TokenIds([1, 2, 3, 4, 5]), EXACT, same) == 2
    for prompt in ([1, 2, 3, 4], [1, 2, 3, 4, 6], [1, 2, 3, 4, 5, 6], [1, 2, 9, 4, 5], [4, 5]):
        assert drawn_before(stored(), TokenIds(prompt), EXACT, same) == 0
    whole = TokenIds([1, 2, 3, 4, 5])
    for other in (replace(same, seed=8), replace(same, temperature=0.5), replace(same, top_k=3)):
        assert drawn_before(stored(), whole, EXACT, other) == 0
    assert drawn_before(stored(), whole, memory(sinks=8, window=24, topk=2), same) == 0
    assert drawn_before(stored(), whole, EXACT.replace(inspect=True), same) == 2


@pytest.mark.parametrize(
    ("axes", "layout"),
    [
        (memory(topk=2, sinks=8, window=24, token_step=3), LAYOUT),
        (memory(topk=2, sinks=8, window=24, preselect=Preselect.PROMPT), LAYOUT),
        (memory(topk=2, verify=3), LAYOUT),
        (memory(rope=RopeSpec("dynamic", 10000.0, 64, 160, factor=2.0)), LAYOUT),
        (EXACT, replace(LAYOUT, block_size=32, kv_type=KvType.INT8)),
        (EXACT, replace(LAYOUT, anchor_type=AnchorType.DYNAMIC)),
    ],
    ids=["shared selection", "preselection", "drafts", "dynamic NTK", "packed", "dynamic anchors"],
)
def test_where_a_step_needs_more_than_is_kept_no_answer_goes_on(axes: MemorySpec, layout: KvLayout) -> None:
    assert draw_of(SamplingSpec(), axes, layout, [4, 5], False) is None
    assert draw_of(SamplingSpec(), EXACT, LAYOUT, [4, 5], False) == Draw(SamplingSpec(), 5)
    assert draw_of(SamplingSpec(), EXACT, LAYOUT, [4, 5], True) is None
    assert draw_of(SamplingSpec(), EXACT, LAYOUT, [], False) is None
