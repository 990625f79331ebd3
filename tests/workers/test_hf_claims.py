"""What model cards say of long contexts reaches checkpoints of their shape, and no others."""

from __future__ import annotations

from typing import Any

import pytest

from moorage.runtime.config.presets import PRESETS
from moorage.runtime.config.session_settings import resolve_memory
from moorage.runtime.planning.session_limit import session_limit
from moorage.workers.gpu.model.families import FAMILIES
from moorage.workers.hf_config import read_spec
from moorage.workers.hf_fields import Fields
from moorage.workers.spec import ModelSpec, Positions
from tests.runtime.config.test_presets import config

QWEN3_8B = {
    "num_hidden_layers": 36,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rope_theta": 1000000,
    "head_dim": 128,
}
QWEN_1M = {
    "num_hidden_layers": 28,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 1010000,
    "rope_theta": 10000000.0,
    "dual_chunk_attention_config": {
        "chunk_size": 262144,
        "local_size": 8192,
        "original_max_position_embeddings": 262144,
    },
}
INTERNLM_1M = {
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 92544,
    "max_position_embeddings": 262144,
    "bias": False,
    "rope_theta": 50000000,
    "rope_scaling": {"type": "dynamic", "factor": 2.5},
}


def spec(family: str, values: dict[str, Any], **changes: Any) -> ModelSpec:
    return read_spec(Fields({**values, **changes}, "config.json"), FAMILIES[family])


def test_qwen3_takes_the_yarn_of_its_card_beyond_the_trained_length() -> None:
    qwen = spec("qwen3", QWEN3_8B)
    assert qwen.claimed_length == 131072
    rope = qwen.rope
    assert (rope.rope_type, rope.length_class(40960), rope.length_class(40961)) == ("default", 0, 1)
    assert [rope.switches_at(length) for length in (40960, 40961, 40962)] == [False, True, False]
    yarn = rope.of_length(40961)
    assert (yarn.rope_type, yarn.factor, yarn.original_max_position_embeddings) == ("yarn", 4.0, 32768)
    assert (yarn.theta, yarn.rotary_dim) == (rope.theta, rope.rotary_dim)
    assert rope.of_length(40960) is rope


@pytest.mark.parametrize(
    "changes",
    [
        {"max_position_embeddings": 262144, "rope_theta": 5000000},
        {"rope_theta": 10000.0},
        {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32768}},
        {"num_hidden_layers": 35},
        {"vocab_size": 1000},
    ],
    ids=["longer trained", "other base", "own scaling", "other depth", "other vocabulary"],
)
def test_another_checkpoint_keeps_what_its_config_says(changes: dict[str, Any]) -> None:
    other = spec("qwen3", QWEN3_8B, **changes)
    assert (other.claimed_length, other.rope.longer) == (None, None)


def test_the_default_length_is_what_the_model_promises() -> None:
    assert session_limit(config(), spec("qwen3", QWEN3_8B)).max_seq_len == 131072
    assert session_limit(config(), spec("internlm2", INTERNLM_1M)).max_seq_len == 2**20
    limit = session_limit(config(), spec("qwen2", QWEN_1M))
    assert (limit.max_seq_len, limit.trained_tokens, limit.warnings) == (1010000, 262144, ())
    plain = session_limit(config(memory={"rope_scaling": {"rope_type": "default"}}), spec("qwen3", QWEN3_8B))
    assert plain.max_seq_len == 40960


@pytest.mark.parametrize("preset", ["moorage", "full", "ktransformers"])
def test_presets_without_positions_of_their_own_follow_the_dual_chunks_of_a_checkpoint(preset: str) -> None:
    found = resolve_memory(config(memory={"preset": preset}), model=spec("qwen2", QWEN_1M)).positions
    assert (found.scheme, found.dca_chunk, found.mscale) == (Positions.DCA, 253952, 0.1)


@pytest.mark.parametrize(
    "memory",
    [
        {"positions": "rope"},
        {"preset": "lmdeploy"},
        {"rope_scaling": {"rope_type": "yarn", "factor": 4}},
        {"rope_scaling_factor": 2.0},
        {"pretraining_length": 32768},
    ],
    ids=str,
)
def test_who_says_something_of_positions_decides_them(memory: dict[str, Any]) -> None:
    found = resolve_memory(config(memory=memory), model=spec("qwen2", QWEN_1M)).positions
    assert found.scheme is Positions.ROPE


@pytest.mark.parametrize(
    "memory",
    [{"positions": "dca"}, {"positions": "clamped"}, {"preset": "lmdeploy"}, {"pretraining_length": 8192}],
    ids=str,
)
def test_the_cards_scaling_is_for_plain_positions_at_the_trained_length(memory: dict[str, Any]) -> None:
    rope = resolve_memory(config(memory=memory), model=spec("qwen3", QWEN3_8B)).positions.rope
    assert rope is not None
    assert rope.longer is None


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_serves_models_with_claims(preset: str) -> None:
    for family, values in (("qwen3", QWEN3_8B), ("qwen2", QWEN_1M), ("internlm2", INTERNLM_1M)):
        assert session_limit(config(memory={"preset": preset}), spec(family, values)).max_seq_len >= 32768
