"""Position keys of the configuration, settled against a model and refused where they make no sense."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from moorage.runtime.config.load import build_config
from moorage.runtime.config.session_settings import check_positions, resolve_memory
from moorage.runtime.config.source import Source
from moorage.runtime.planning.known_models import MODEL_PRESETS
from moorage.workers.errors import InvalidConfig, InvalidModel, InvalidRequest
from moorage.workers.gpu.model.rope import rope_view
from moorage.workers.hf_config import read_model_spec
from moorage.workers.spec import DualChunkSpec, MemorySpec, ModelSpec, Positions, RopeSpec
from tests.runtime.config.test_presets import config

LLAMA = MODEL_PRESETS["llama-3-8b"]
PLAIN = replace(LLAMA, rope=RopeSpec("default", 10000.0, 128, 4096))


def settled(model: ModelSpec = PLAIN, preset: str | None = None, **memory: Any) -> MemorySpec:
    return resolve_memory(config(memory=memory), preset, model)


def rope_of(model: ModelSpec = PLAIN, preset: str | None = None, **memory: Any) -> RopeSpec:
    rope = settled(model, preset, **memory).positions.rope
    assert rope is not None
    return rope


def test_without_any_key_the_model_keeps_its_rotary_embedding() -> None:
    assert rope_of(LLAMA) == LLAMA.rope


def test_dca_takes_three_quarters_of_the_trained_length() -> None:
    memory = settled(preset="chunkllama")
    assert (memory.positions.scheme, memory.positions.pretraining_length, memory.positions.dca_chunk) == (
        Positions.DCA,
        4096,
        3072,
    )
    assert not memory.positions.mscale
    memory = settled(preset="chunkllama", pretraining_length=1000)
    assert (memory.positions.pretraining_length, memory.positions.dca_chunk) == (1000, 704)
    memory = settled(positions="dca", dca_chunk=2048, pretraining_length=2560, mscale=0.05)
    assert (memory.positions.pretraining_length, memory.positions.dca_chunk, memory.positions.mscale) == (
        2560,
        2048,
        0.05,
    )
    assert memory.positions.mscale_length == 2560


def test_a_checkpoint_names_its_own_dual_chunks() -> None:
    qwen = replace(PLAIN, dual_chunk=DualChunkSpec(262145, 253952, 262144, mscale=0.1))
    memory = settled(qwen, positions="dca")
    assert (memory.positions.pretraining_length, memory.positions.dca_chunk) == (262145, 253952)
    assert (memory.positions.mscale, memory.positions.mscale_length) == (0.1, 262144)
    assert settled(qwen, positions="dca", mscale=0).positions.mscale == 0
    assert settled(qwen, positions="dca", pretraining_length=4096).positions.dca_chunk == 3072
    assert settled(qwen).positions == memory.positions, "the checkpoint's own positions are the default"
    assert settled(qwen, positions="rope").positions.dca_chunk is None


def test_the_key_of_qwen_checkpoints_is_read(tmp_path: Path) -> None:
    values = {
        "architectures": ["Qwen2ForCausalLM"], "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 1,
        "intermediate_size": 64, "vocab_size": 32, "max_position_embeddings": 1010000,
        "dual_chunk_attention_config": {
            "chunk_size": 262144, "local_size": 8192, "original_max_position_embeddings": 262144,
        },
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert read_model_spec(tmp_path).dual_chunk == DualChunkSpec(262145, 253952, 262144, mscale=0.1)
    for local in (33, 64):
        values["dual_chunk_attention_config"] = {"chunk_size": 64, "local_size": local}
        (tmp_path / "config.json").write_text(json.dumps(values))
        with pytest.raises(
            InvalidModel, match=rf"local_size is {local}; it must be at most half of chunk_size 64"
        ):
            read_model_spec(tmp_path)


@pytest.mark.parametrize("length", [1, 4096, 4097, 8192, 1_000_000])
@pytest.mark.parametrize("factor", [1.0, 2.5])
def test_rope_scaling_factor_is_lmdeploys_formula(factor: float, length: int) -> None:
    view = rope_view(rope_of(rope_scaling_factor=factor), length)
    scale = factor * max(length, 4096) / 4096 - (factor - 1)
    base = 10000.0 * scale ** (128 / 126)
    expected = base ** -(torch.arange(0, 128, 2, dtype=torch.float64) / 128)
    torch.testing.assert_close(view.inv_freq, expected, rtol=1e-12, atol=0)


def test_session_len_and_pretraining_length_take_effect() -> None:
    plain = rope_of(rope_scaling_factor=2.0)
    fixed = rope_of(rope_scaling_factor=2.0, session_len=20000)
    assert torch.equal(rope_view(fixed, 5).inv_freq, rope_view(plain, 20000).inv_freq)
    short = rope_of(rope_scaling_factor=2.0, pretraining_length=512)
    assert torch.equal(rope_view(short, 1024).inv_freq, rope_view(plain, 8192).inv_freq)


def test_preset_lmdeploy_scales_only_what_has_no_scaling_of_its_own() -> None:
    assert rope_of(preset="lmdeploy").rope_type == "dynamic"
    yarn = replace(PLAIN, rope=RopeSpec("yarn", 10000.0, 128, 16384, 4096, factor=4.0))
    assert rope_of(yarn, "lmdeploy") == yarn.rope
    chosen = rope_of(yarn, **{"preset": "lmdeploy", "rope_scaling_factor": 1.0})
    assert (chosen.rope_type, chosen.factor) == ("dynamic", 1.0)


def test_a_general_override_reads_transformers_words() -> None:
    rope = rope_of(rope_scaling={"rope_type": "yarn", "factor": 4.0}, base=5e6, distance_scale=0.5)
    assert (rope.rope_type, rope.factor, rope.theta) == ("yarn", 4.0, 5e6)
    assert (rope.original_max_position_embeddings, rope.rotary_dim) == (4096, 128)
    halved = rope_view(rope, 10).inv_freq
    torch.testing.assert_close(halved * 2, rope_view(replace(rope, distance_scale=1.0), 10).inv_freq)
    partial = rope_of(rope_scaling={"rope_type": "linear", "factor": 2, "partial_rotary_factor": 0.5})
    assert partial.rotary_dim == 64


def test_another_preset_leaves_the_clusters_scaling_behind() -> None:
    chosen = {"rope_scaling_factor": 2.5, "pretraining_length": 2048, "base": 1e6, "rebase_every": 3}
    memory = settled(preset="chunkllama", **chosen)
    assert memory.positions.rope == PLAIN.rope
    assert (memory.positions.pretraining_length, memory.positions.rebase_every) == (2048, 3)


@pytest.mark.parametrize(
    ("model", "memory", "complaint"),
    [
        (PLAIN, {"positions": "dca", "dca_chunk": 4096}, r"memory\.dca_chunk: 4096 leaves no position below"),
        (PLAIN, {"positions": "dca", "pretraining_length": 40}, r"long_context\.block_size: 64 exceeds"),
        (PLAIN, {"session_len": 100}, r"memory\.session_len: has no effect on rope_type default"),
        (PLAIN, {"rope_scaling": {"rope_type": "yam"}}, r"memory\.rope_scaling: rope_type 'yam' is not supp"),
        (PLAIN, {"rope_scaling": {"rope_type": "linear"}}, r"memory\.rope_scaling: factor is missing"),
        (
            replace(PLAIN, dual_chunk=DualChunkSpec(1001, 900)),
            {"positions": "dca"},
            r"memory\.dca_chunk: 900 is not a multiple of block_size 64; use 896",
        ),
    ],
)
def test_what_does_not_fit_the_model_is_refused(
    model: ModelSpec, memory: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(InvalidConfig, match=complaint) as caught:
        check_positions(config(memory=memory), model)
    assert "\n" not in str(caught.value)
    with pytest.raises(InvalidRequest, match=complaint):
        resolve_memory(config(memory=memory), model=model)


@pytest.mark.parametrize(
    ("memory", "complaint"),
    [
        ({"positions": "dca", "dca_chunk": 3000}, r"memory\.dca_chunk: 3000 is not a multiple.*use 2944"),
        ({"positions": "dca", "topk": 0}, r"memory\.positions: dca needs keys beyond the window"),
        ({"positions": "rolling"}, r"memory\.positions: rolling gives only sinks and window"),
        ({"preset": "stream-llm", "topk": 4}, r"memory\.positions: rolling gives only"),
        ({"positions": "clamped", "dca_chunk": 1024}, r"memory\.dca_chunk: belongs to dca.*are clamped"),
        ({"mscale": 0.1}, r"memory\.mscale: belongs to dca"),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 2}, "rope_scaling_factor": 2.0},
            r"memory\.rope_scaling_factor: is short for",
        ),
        ({"rope_scaling_factor": 0}, r"memory\.rope_scaling_factor: got 0"),
        ({"base": 1}, r"memory\.base: got 1"),
    ],
)
def test_combinations_that_make_no_sense_are_refused_before_a_model_is_read(
    memory: dict[str, Any], complaint: str
) -> None:
    values = {"model": {"path": "m"}, "memory": memory}
    with pytest.raises(InvalidConfig, match=complaint) as caught:
        build_config(Source(Path("cluster.yaml"), values, {}))
    assert "\n" not in str(caught.value)
