"""The keys of a GGUF file become those of a config.json, and what can't be obeyed is refused in one line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moorage.workers.errors import InvalidModel
from moorage.workers.gguf.config import config_of
from moorage.workers.gguf.model import GgufModel, read_gguf
from moorage.workers.gpu.model.families import FAMILIES
from moorage.workers.hf_config import read_model_spec, read_spec
from moorage.workers.hf_generation import SamplingDefaults, read_sampling_defaults
from moorage.workers.safetensors_header import TensorHeader
from moorage.workers.spec import ModelSpec, RopeSpec
from tests.gguf_files import write_gguf

SHAPE = {
    "block_count": 2,
    "context_length": 4096,
    "embedding_length": 128,
    "feed_forward_length": 256,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 500000.0,
    "rope.dimension_count": 32,
}
EMBEDDINGS = np.zeros((173, 128), np.float32)


def model(
    tmp_path: Path, changes: Mapping[str, Any] | None = None, architecture: str = "llama", **tensors: Any
) -> Path:
    """A file with the keys of SHAPE under `changes`, in which None takes a key away, and no layer."""
    keys = {f"{architecture}.{key}": value for key, value in SHAPE.items()} | dict(changes or {})
    arrays = {
        "token_embd.weight": EMBEDDINGS,
        **{name.replace("__", "."): value for name, value in tensors.items()},
    }
    given = {key: value for key, value in keys.items() if value is not None}
    return write_gguf(tmp_path / "model.gguf", architecture, given, arrays)


def refusal(file: Path) -> str:
    with pytest.raises(InvalidModel) as caught:
        read_model_spec(file)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{file}: ")
    return str(caught.value)


def test_numbers_are_those_that_were_written_in_decimals(tmp_path: Path) -> None:
    changes = {
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.eot_token_id": 7,
        "tokenizer.ggml.eom_token_id": 2,
    }
    assert read_model_spec(model(tmp_path, changes)) == ModelSpec(
        family="llama",
        num_layers=2,
        hidden_size=128,
        intermediate_size=256,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        vocab_size=173,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        rope=RopeSpec(theta=500000.0, rotary_dim=32, max_position_embeddings=4096),
        tie_word_embeddings=True,
        dtype="float32",
        bos_token_id=1,
        eos_token_ids=(2, 7),
    )


def test_lists_of_one_value_for_each_layer(tmp_path: Path) -> None:
    spec = read_model_spec(model(tmp_path, {"llama.feed_forward_length": [256, 256]}))
    assert spec.intermediate_size == 256
    (tmp_path / "model.gguf").unlink()
    assert "key llama.feed_forward_length differs between layers" in refusal(
        model(tmp_path, {"llama.feed_forward_length": [256, 128]})
    )


def test_a_scaling_by_factor(tmp_path: Path) -> None:
    rope = read_model_spec(
        model(tmp_path, {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0})
    ).rope
    assert (rope.rope_type, rope.factor) == ("linear", 4.0)


def test_yarn(tmp_path: Path) -> None:
    scaling = {"type": "yarn", "factor": 4.0, "original_context_length": 1024}
    rope = read_model_spec(
        model(tmp_path, {f"llama.rope.scaling.{key}": value for key, value in scaling.items()})
    ).rope
    assert (rope.rope_type, rope.factor, rope.original_max_position_embeddings) == ("yarn", 4.0, 1024)


def llama3_factors(
    factor: float, low: float, high: float, original: int, theta: float, dim: int
) -> np.ndarray:
    """As llama.cpp's converter computes them."""
    frequencies = theta ** -(np.arange(0, dim, 2) / dim)
    waves = 2 * np.pi / frequencies
    smooth = (original / waves - low) / (high - low)
    middle = 1 / ((1 - smooth) / factor + smooth)
    return np.where(waves < original / high, 1, np.where(waves > original / low, factor, middle)).astype(
        np.float32
    )


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3s_scaling_is_known_by_its_factors(tmp_path: Path, factor: float) -> None:
    factors = llama3_factors(factor, 1, 4, 8192, 5e5, 32)
    rope = read_model_spec(model(tmp_path, rope_freqs__weight=factors)).rope
    assert (rope.rope_type, rope.factor) == ("llama3", factor)
    assert (rope.low_freq_factor, rope.high_freq_factor, rope.original_max_position_embeddings) == (
        1,
        4,
        8192,
    )


def test_other_factors_are_taken_as_they_are(tmp_path: Path) -> None:
    factors = llama3_factors(8, 1, 3, 2048, 5e5, 32)
    rope = read_model_spec(model(tmp_path, rope_freqs__weight=factors)).rope
    assert (rope.rope_type, rope.attention_factor) == ("longrope", 1.0)
    np.testing.assert_allclose(rope.short_factor, factors)
    assert rope.long_factor == rope.short_factor


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"llama.block_count": None}, "key llama.block_count is missing; download the file again"),
        ({"llama.block_count": 0}, "key llama.block_count is 0; it must be a positive integer"),
        ({"llama.block_count": "two"}, "key llama.block_count is 'two'; it must be a number"),
        ({"llama.embedding_length": 2.5}, "key llama.embedding_length is 2.5; it must be a positive integer"),
        ({"llama.attention.head_count_kv": 3}, "num_key_value_heads is 3; it must be a divisor of"),
        (
            {"llama.attention.value_length": 64},
            "key llama.attention.value_length differs from the keys' length",
        ),
        ({"llama.attention.causal": False}, "key llama.attention.causal is false, and only causal models"),
        ({"llama.rope.dimension_count": 64}, "key llama.rope.dimension_count must be from 1 to 32"),
        (
            {"llama.rope.scaling.type": "spiral"},
            "rope.scaling.type 'spiral' is not supported; use none, linear",
        ),
        ({"llama.attention.clamp_kqv": 8.0}, "key llama.attention.clamp_kqv changes what the model computes"),
        ({"llama.expert_gating_func": 2}, "key llama.expert_gating_func changes what the model computes"),
        ({"llama.ssm.state_size": 16}, "key llama.ssm.state_size changes what the model computes"),
    ],
)
def test_what_cant_be_obeyed_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    assert message in refusal(model(tmp_path, changes))


def test_a_key_that_changes_nothing_may_stand(tmp_path: Path) -> None:
    assert (
        read_model_spec(model(tmp_path, {"llama.expert_count": 0, "llama.expert_gating_func": 1})).num_layers
        == 2
    )


def test_unknown_architectures_are_named(tmp_path: Path) -> None:
    message = refusal(model(tmp_path, architecture="mamba"))
    assert "architecture mamba is not supported; use a model of llama, " in message


HOSTILE = (0, 1, 2**32 - 1, True, -1.0, 1e30, float("nan"), "", "text", [], [1, 2], ["a"])
KEYS = (
    *(f"llama.{key}" for key in SHAPE),
    "llama.attention.key_length",
    "llama.attention.value_length",
    "llama.rope.scaling.type",
    "llama.rope.scaling.factor",
    "llama.rope.scaling.original_context_length",
    "llama.expert_count",
    "general.architecture",
)


@pytest.mark.parametrize("key", KEYS)
def test_any_value_is_read_or_refused(key: str) -> None:
    """Of values that no converter writes, none gives an error that a user can't act on."""
    tensors = {
        "token_embd.weight": TensorHeader("token_embd.weight", Path("m.gguf"), "F32", (173, 128), 0, 1)
    }
    plain = {f"llama.{name}": value for name, value in SHAPE.items()} | {"general.architecture": "llama"}
    refusals = []
    for value in HOSTILE:
        for kind in ("none", "linear", "yarn"):
            values = {**plain, "llama.rope.scaling.type": kind, key: value}
            try:
                read_spec(config_of(GgufModel(Path("m.gguf"), values, {}, tensors)), FAMILIES["llama"])
            except InvalidModel as error:
                refusals.append(str(error))
    assert refusals
    assert all(line.startswith("m.gguf: ") and "\n" not in line for line in refusals)


def test_sampling_that_the_file_recommends(tmp_path: Path) -> None:
    assert read_sampling_defaults(model(tmp_path)) == SamplingDefaults()
    (tmp_path / "model.gguf").unlink()
    changes = {
        "general.sampling.temp": 0.6,
        "general.sampling.top_k": 20,
        "general.sampling.top_p": 0.95,
        "general.sampling.penalty_repeat": 1.05,
    }
    assert read_sampling_defaults(model(tmp_path, changes)) == SamplingDefaults(0.6, 20, 0.95, 0.0, 1.05)


def test_parts_are_counted(tmp_path: Path) -> None:
    file = model(tmp_path, {"split.count": 2})
    with pytest.raises(InvalidModel, match=r"model\.gguf: split\.count is 2, but there are 1 files of it"):
        read_gguf([file])
