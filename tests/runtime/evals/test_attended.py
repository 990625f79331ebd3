"""Choices of memory that attend the same keys are told; no others are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from moorage.runtime.config.presets import PRESETS
from moorage.runtime.config.resolve import kv_layout
from moorage.runtime.config.session_settings import resolve_memory
from moorage.runtime.evals.attended import attended_keys, same_keys, stored_keys
from moorage.runtime.planning.known_models import MODEL_PRESETS
from moorage.workers.spec import ModelSpec, RopeSpec
from tests.runtime.config.test_presets import config

ROPE = RopeSpec(rotary_dim=128, max_position_embeddings=32768)
MODEL: ModelSpec = replace(MODEL_PRESETS["llama-3-8b"], rope=ROPE, max_position_embeddings=32768)


def attended(length: int, preset: str = "moorage", **memory: Any) -> object:
    chosen = config(memory={"preset": preset, **memory})
    return attended_keys(resolve_memory(chosen, model=MODEL), kv_layout(chosen, MODEL), length)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_full_attention_where_its_window_holds_the_session(preset: str) -> None:
    assert attended(4096, preset) == attended(4096, "full")


@pytest.mark.parametrize("preset", ["moorage", "ktransformers"])
def test_a_preset_with_a_choice_is_full_attention_up_to_dense_until(preset: str) -> None:
    assert attended(8192, preset) == attended(8192, "full")
    assert attended(20000, preset) != attended(20000, "full")
    assert attended(8192, preset, dense_until=4096, topk=8) != attended(8192, "full")


def test_positions_tell_choices_apart_where_they_differ() -> None:
    assert attended(8192, "inf-llm") != attended(8192, "full"), "clamped beyond its window"
    assert attended(16384, "chunkllama") == attended(16384, "full"), "within its first chunk"
    assert attended(32768, "chunkllama") != attended(32768, "full")
    assert attended(32768, "lmdeploy") == attended(32768, "full"), "dynamic NTK within the trained length"
    assert attended(65536, "lmdeploy") != attended(65536, "full")
    assert attended(16384, "stream-llm") != attended(16384, "infinite-lm")


def test_another_budget_or_another_anchor_is_another_choice() -> None:
    assert attended(30000, topk=8) != attended(30000, topk=9)
    assert attended(30000, topk_keys=8) != attended(30000, topk_keys=9)
    assert attended(30000, "full", anchor_space="plain") == attended(30000, "full")
    assert attended(30000, topk=8, anchor_space="plain") == attended(30000, topk=8)
    assert attended(30000, topk=8, anchor_space="rotated") != attended(30000, topk=8)


def test_packed_keys_are_other_numbers_than_those_in_fp16() -> None:
    def stored(memory: dict[str, Any], **store: Any) -> object:
        return stored_keys(kv_layout(config(memory=memory, long_context=store), MODEL))

    packed = stored({"preset": "kvquant"})
    assert packed != stored({"preset": "full"})
    assert packed == stored({"preset": "full"}, kv_type="NUQ3")
    assert packed != stored({"preset": "kvquant", "n_fp16_sinks": 0})
    assert packed != stored({"preset": "kvquant"}, block_size=64)
    assert stored({"preset": "full"}) == stored({"preset": "full"}, block_size=64)


def test_names_that_share_keys_are_said_with_their_lengths() -> None:
    values = {"a": [1, 2, 3], "b": [1, 2, 4], "c": [0, 2, 3]}
    assert same_keys(values, [1024, 2048, 5000]) == [
        "a and b attend the same keys at 1K: one choice under several names",
        "a, b and c attend the same keys at 2K: one choice under several names",
        "a and c attend the same keys at 5000: one choice under several names",
    ]
    assert same_keys({"a": [1], "b": [2]}, [1024]) == []
