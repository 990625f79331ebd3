"""How far positions hold, by checkpoint and by position scheme."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from moorage.runtime.config.presets import PRESETS
from moorage.runtime.config.session_settings import resolve_memory
from moorage.runtime.planning.known_models import MODEL_PRESETS
from moorage.runtime.planning.trained_length import Reach, reach, trained_length
from moorage.workers.spec import DualChunkSpec, ModelSpec, RopeSpec
from tests.runtime.config.test_presets import config


def model(max_positions: int = 8192, **rope: Any) -> ModelSpec:
    spec = RopeSpec(theta=1e4, rotary_dim=128, max_position_embeddings=max_positions, **rope)
    return replace(MODEL_PRESETS["llama-3-8b"], rope=spec, max_position_embeddings=max_positions)


PLAIN = model()
YARN = model(32768, rope_type="yarn", factor=4.0, original_max_position_embeddings=32768)
LLAMA_3_1 = model(131072, rope_type="llama3", factor=8.0, original_max_position_embeddings=8192)
QWEN_1M = replace(model(1010000), dual_chunk=DualChunkSpec(262145, 253952, 262144))


def reached(spec: ModelSpec = PLAIN, preset: str = "full", **memory: Any) -> int | None:
    chosen = config(memory={"preset": preset, **memory})
    return reach(resolve_memory(chosen, model=spec), spec).tokens


@pytest.mark.parametrize(
    ("spec", "trained"),
    [
        (PLAIN, 8192),
        (model(4096, rope_type="linear", factor=4.0), 16384),
        (model(16384, rope_type="linear", factor=4.0), 16384),
        (model(32768, rope_type="linear", factor=8.0), 32768),
        (model(32768, rope_type="dynamic", factor=2.5), 32768),
        (YARN, 131072),
        (LLAMA_3_1, 131072),
        (model(131072, rope_type="longrope", factor=32.0, original_max_position_embeddings=4096), 131072),
        (QWEN_1M, 262144),
    ],
    ids=(
        "plain",
        "Vicuna 16K",
        "DeepSeek-Coder",
        "LLaMA-2-7B-32K",
        "dynamic",
        "yarn",
        "llama3",
        "longrope",
        "dual chunks",
    ),
)
def test_the_trained_length_includes_the_checkpoints_own_scaling(spec: ModelSpec, trained: int) -> None:
    assert trained_length(spec) == trained
    if spec.rope.rope_type != "dynamic":
        assert reached(spec, positions="rope") == trained


def test_plain_rope_ends_at_the_trained_length() -> None:
    found = reach(resolve_memory(config(), model=PLAIN), PLAIN)
    assert found == Reach(8192, "plain RoPE, trained on 8,192 tokens")
    assert [found.beyond(length) for length in (1, 8192, 8193)] == [0, 0, 1]
    assert reached(pretraining_length=4096) == 4096


@pytest.mark.parametrize("preset", ["inf-llm", "stream-llm", "infinite-lm"])
def test_clamped_and_rolling_positions_hold_at_any_length(preset: str) -> None:
    assert reached(preset=preset) is None


def test_clamped_and_rolling_positions_hold_only_where_the_window_was_trained() -> None:
    for preset in ("inf-llm", "stream-llm"):
        wide = config(memory={"preset": preset}, long_context={"local_windows_len": 4096})
        assert reach(resolve_memory(wide, model=model(2048)), model(2048)).tokens == 2048
        assert reached(model(2048), preset) is None, "the preset's own window follows the trained length"
    assert Reach(None, "any").beyond(10**9) == 0


def test_dual_chunks_hold_to_sixteen_times_the_trained_length() -> None:
    assert reached(preset="chunkllama") == 16 * 8192
    assert reached(LLAMA_3_1, "chunkllama") == 16 * 131072
    assert reached(preset="chunkllama", pretraining_length=4096) == 16 * 4096
    assert reached(QWEN_1M, "full", positions="dca") == reached(QWEN_1M, "full") == 1010000


def test_dual_chunks_follow_the_trained_length_and_not_the_one_before_scaling() -> None:
    """Llama 3.1: 131 072 tokens trained, `original_max_position_embeddings` 8 192."""
    memory = resolve_memory(config(memory={"preset": "chunkllama"}), model=LLAMA_3_1)
    assert (memory.positions.pretraining_length, memory.positions.dca_chunk) == (131072, 98304)


@pytest.mark.parametrize(
    ("memory", "tokens"),
    [
        ({"rope_scaling_factor": 1.0}, 16384),
        ({"rope_scaling_factor": 4.0}, 32768),
        ({"preset": "lmdeploy"}, 16384),
        ({"rope_scaling": {"rope_type": "linear", "factor": 4}}, 32768),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4}}, 32768),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 4096}},
            16384,
        ),
        ({"distance_scale": 0.25}, 32768),
        ({"distance_scale": 2.0}, 4096),
        ({"base": 5e6}, 8192),
    ],
    ids=str,
)
def test_a_scaling_of_the_configuration_reaches_what_its_factor_says(
    memory: dict[str, Any], tokens: int
) -> None:
    assert reached(**memory) == tokens


def test_a_scaling_in_place_of_the_checkpoints_starts_from_the_unscaled_length() -> None:
    assert reached(YARN, rope_scaling={"rope_type": "default"}) == 32768
    assert reached(YARN, rope_scaling={"rope_type": "linear", "factor": 2}) == 65536


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_that_extends_the_trained_length_says_how_far(name: str) -> None:
    found, source = reached(preset=name), PRESETS[name].source
    words = {8192: "", 16384: "up to twice the trained length", 131072: "up to 16 times the trained length"}
    assert ("for any length" if found is None else words[found]) in source
