"""The default of max_seq_len, and the warning for one that is too long."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from moorage.runtime.planning.known_models import MODEL_PRESETS
from moorage.runtime.planning.session_limit import SessionLimit, session_limit
from moorage.workers.spec import LayerSpec, ModelSpec, RopeSpec
from tests.runtime.config.test_presets import config


def model(trained: int) -> ModelSpec:
    rope = RopeSpec(rotary_dim=128, max_position_embeddings=trained)
    return replace(MODEL_PRESETS["llama-3-8b"], rope=rope, max_position_embeddings=trained)


def limit(trained: int = 8192, max_seq_len: int | None = None, **memory: Any) -> SessionLimit:
    return session_limit(config(memory=memory, long_context={"max_seq_len": max_seq_len}), model(trained))


@pytest.mark.parametrize("preset", ["moorage", "full", "ktransformers"])
def test_the_default_is_the_trained_length(preset: str) -> None:
    for trained in (512, 8192, 1 << 20):
        found = limit(trained, preset=preset)
        assert (found.max_seq_len, found.trained_tokens, found.warnings) == (trained, trained, ())


def test_the_default_follows_positions_that_extend_the_trained_length() -> None:
    assert limit(preset="inf-llm").max_seq_len == 131072
    assert limit(1 << 20, preset="inf-llm").max_seq_len == 1 << 20
    assert limit(preset="lmdeploy").max_seq_len == 16384
    assert limit(4096, preset="chunkllama").max_seq_len == 65536
    assert limit(32768, preset="chunkllama").max_seq_len == 131072
    assert limit(512, preset="inf-llm").max_seq_len == 131072
    wide = config(memory={"preset": "inf-llm"}, long_context={"local_windows_len": 1024})
    assert session_limit(wide, model(512)).max_seq_len == 512


def test_a_longer_session_than_positions_reach_is_warned_of() -> None:
    found = limit(max_seq_len=16384)
    assert found.max_seq_len == 16384
    (warning,) = found.warnings
    for word in ("long_context.max_seq_len: 16,384", "8,192", "plain RoPE", "memory.positions"):
        assert word in warning
    assert limit(max_seq_len=8192).warnings == ()
    assert limit(max_seq_len=1 << 20, preset="inf-llm").warnings == ()


def test_a_sliding_window_does_not_limit_a_session() -> None:
    windowed = replace(model(32768), layers=(LayerSpec(window=4096),) * model(32768).num_layers)
    assert session_limit(config(), windowed).max_seq_len == 32768
