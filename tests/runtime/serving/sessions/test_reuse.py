"""How much of a session's KV another prompt may use, in plain numbers: blocks of 4, a window of 8, one sink block."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from moorage.runtime.serving.session_cache import StoredKv
from moorage.runtime.serving.sessions.reuse import reusable_tokens
from moorage.workers.spec import (
    RING_BLOCK,
    RING_MARGIN,
    AnchorType,
    BlockShape,
    KvLayout,
    MemorySpec,
    Positions,
    Preselect,
    RopeSpec,
    WindowLayout,
)
from moorage.workers.token_ids import TokenIds
from tests.engine_driver import memory

LAYOUT = KvLayout(num_layers=2, num_kv_heads=1, head_dim=16, block_size=4)
DYNAMIC = replace(LAYOUT, anchor_type=AnchorType.DYNAMIC)
REPRESENTATIVES = replace(LAYOUT, anchor_type=AnchorType.REPR_TOPK)
EXACT = memory(window=8)
CHOOSING = memory(window=8, sinks=4, topk=2)
SELECTED = CHOOSING.replace(execution_block=12)
FIRST_CHOICE = (1 + 2 + 1) * 4 + 8 - 1
"""The first position that sees three candidates and may choose two."""


def reused(
    old: MemorySpec,
    new: MemorySpec | None = None,
    *,
    prompt: int = 60,
    generated: int = 10,
    shared: int | None = None,
    length: int = 100,
    layout: KvLayout = LAYOUT,
) -> int:
    """Of `prompt` prefilled and `generated` stored tokens, by a prompt of `length` that shares the first `shared`."""
    held = tuple(range(prompt + generated))
    alike = len(held) if shared is None else shared
    asked = [*range(min(alike, length)), *([9999] * (length - alike))]
    return reusable_tokens(StoredKv(TokenIds(held), prompt, old), asked, new or old, layout)


def test_under_full_attention_all_that_is_shared_serves_but_the_last_token() -> None:
    assert reused(EXACT) == 70
    assert reused(EXACT, shared=33) == 33
    assert reused(EXACT, length=64) == 63
    assert reused(EXACT, generated=0, length=60) == 59
    assert reused(EXACT, shared=0) == 0


def test_tokens_generated_over_chosen_blocks_are_prefilled_anew() -> None:
    assert reused(CHOOSING) == 60
    assert reused(CHOOSING, prompt=15, generated=20) == FIRST_CHOICE
    assert reused(CHOOSING.replace(dense_until=64)) == 64
    assert reused(CHOOSING.replace(dense_layers=2)) == 70
    assert reused(CHOOSING.replace(dense_layers=1)) == 60
    assert reused(CHOOSING, EXACT) == reused(EXACT, CHOOSING, generated=0) == 60


@pytest.mark.parametrize(
    "changes",
    [
        {"scheme": Positions.CLAMPED},
        {"scheme": Positions.ROLLING, "topk": 0},
        {"scheme": Positions.DCA, "pretraining_length": 60, "dca_chunk": 48},
        {"topk": 0},
        {"rope": RopeSpec(theta=5e5)},
        {"rope": RopeSpec("linear", factor=2.0)},
    ],
)
def test_nothing_serves_under_other_positions(changes: dict[str, Any]) -> None:
    other = EXACT.replace(**changes)
    assert reused(EXACT, other) == reused(other, EXACT) == 0
    assert reused(other) == 70


def test_selected_prefill_goes_on_at_an_execution_block_that_was_whole() -> None:
    assert reused(SELECTED, prompt=65, generated=0) == 60
    assert reused(SELECTED, prompt=65, generated=30) == 60
    assert reused(SELECTED, prompt=60, generated=0) == 60
    assert reused(SELECTED.replace(last_tokens_alone=1), prompt=60, generated=0) == 48
    assert reused(SELECTED.replace(last_tokens_alone=1), prompt=61, generated=0) == 60
    assert reused(SELECTED, shared=47) == 36


def test_tokens_that_selected_for_themselves_serve_no_other_prompt() -> None:
    alone = SELECTED.replace(last_tokens_alone=10)
    assert reused(alone, prompt=69, generated=0) == 48
    assert reused(alone, prompt=70, generated=0) == 60
    assert reused(alone, prompt=70, length=69, generated=0) == 48
    assert reused(alone, SELECTED, prompt=70, generated=0) == 60
    assert reused(SELECTED, alone, prompt=70, generated=0) == 60


def test_what_attended_every_key_serves_another_way_to_select() -> None:
    """The first execution block with a choice begins at 24, the first multiple of 12 after position 23."""
    assert reused(SELECTED, SELECTED.replace(execution_block=6)) == 24
    assert reused(SELECTED, SELECTED.replace(topk=3)) == 24
    assert reused(SELECTED, EXACT) == 24
    assert reused(EXACT, SELECTED) == 24
    assert reused(SELECTED, SELECTED.replace(layer_step=2, token_step=4)) == 60
    short = SELECTED.replace(dense_until=80)
    assert reused(short, prompt=60, length=80) == 70
    assert reused(short, prompt=60, length=81) == 24


def test_positions_that_follow_the_length_serve_only_the_same_length_class() -> None:
    ntk = memory(rope=RopeSpec("dynamic", max_position_embeddings=80, factor=2.0))
    assert reused(ntk, length=80) == 70
    assert reused(ntk, length=81) == 0
    assert reused(ntk, prompt=90, generated=0, length=90) == 89
    assert reused(ntk, prompt=76, generated=10, length=78) == 77
    assert reused(ntk, prompt=76, generated=10, length=80) == 79
    fixed = memory(rope=RopeSpec("dynamic", max_position_embeddings=80, factor=2.0, fixed_length=200))
    assert reused(fixed, length=100) == 70
    long = memory(rope=RopeSpec("longrope", original_max_position_embeddings=80))
    assert reused(long, length=80) == 70
    assert reused(long, length=81) == 0
    assert reused(long, prompt=90, generated=5, length=99) == 95
    growing = memory(mscale=0.1, mscale_length=80)
    assert reused(growing, length=80) == 70
    assert reused(growing, length=81) == 0


def test_the_last_queries_run_again_where_they_decide_on_blocks() -> None:
    axes = CHOOSING.replace(importance_queries=16)
    assert reused(axes, prompt=100, generated=0, layout=DYNAMIC) == 84
    assert reused(axes, prompt=100, generated=0) == 99
    assert reused(axes, prompt=10, generated=0, length=12, layout=DYNAMIC) == 0
    assert reused(axes.replace(topk=None), prompt=100, generated=0, layout=DYNAMIC) == 99
    preselecting = axes.replace(preselect=Preselect.PROMPT, preselect_blocks=4)
    assert reused(preselecting, prompt=100, generated=0) == 84
    assert reused(preselecting.replace(execution_block=12), prompt=100, generated=0) == 84


def test_a_window_runs_again_where_anchors_count_the_attention_of_its_queries() -> None:
    """Except at the one point whose counts are remembered: the prompt's end, or its last whole execution block."""
    window = (47 - 8 + 1) // 4 * 4
    assert reused(EXACT, layout=REPRESENTATIVES) == 60
    assert reused(EXACT, generated=30, layout=REPRESENTATIVES) == (90 - 8 + 1) // 4 * 4
    assert reused(EXACT, shared=47, layout=REPRESENTATIVES) == window
    assert reused(SELECTED, layout=REPRESENTATIVES) == 60
    assert reused(SELECTED, prompt=59, layout=REPRESENTATIVES) == 48
    assert reused(SELECTED, shared=59, layout=REPRESENTATIVES) == 48
    assert reused(SELECTED, shared=47, layout=REPRESENTATIVES) == 36
    assert reused(SELECTED.replace(execution_block=10), shared=59, layout=REPRESENTATIVES) == 40
    assert reused(EXACT, EXACT.replace(window=12), layout=REPRESENTATIVES) == 0


def test_a_prompt_that_was_cut_off_serves_as_far_as_it_came() -> None:
    held = StoredKv(TokenIds(range(48)), 100, SELECTED)
    assert reusable_tokens(held, range(100), SELECTED, LAYOUT) == 48
    assert reusable_tokens(replace(held, memory=EXACT), range(100), EXACT, LAYOUT) == 48


WINDOWS = WindowLayout(2, 100, BlockShape(1, RING_BLOCK, 16), "float16", 2)


def test_a_sliding_window_is_continued_as_far_back_as_its_ring_reaches() -> None:
    """Of 5 000 tokens the ring still holds those from its first block on, and the window before needs 99 of them."""
    held, first = tuple(range(5000)), WINDOWS.first_held(5000)
    stored = StoredKv(TokenIds(held), 5000, EXACT, first)
    earliest = first + WINDOWS.window - 1

    def kept(shared: int) -> int:
        return reusable_tokens(stored, [*held[:shared], 9999, 9999], EXACT, LAYOUT, windows=WINDOWS)

    assert [kept(5000), kept(earliest), kept(earliest - 1)] == [5000, earliest, 0]
    assert earliest <= 5000 - RING_MARGIN
