"""A checkpoint as a GGUF file is the same model as its Hugging Face directory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from moorage.workers.gpu.model.weights import load_weights
from moorage.workers.hf_config import read_model_spec
from tests.gguf_files import convert
from tests.tiny_models import TinyModel, build_tiny_checkpoint

CHANGES: Mapping[str, dict[str, Any]] = {
    "qwen2_moe": {"mlp_only_layers": []},
    "qwen3_moe": {"mlp_only_layers": []},
    "gemma2": {"query_pre_attn_scalar": 32},
    "gemma3": {"query_pre_attn_scalar": 32},
    "smollm3": {"num_hidden_layers": 5, "no_rope_layers": None},
    "internlm2": {"rope": {"rope_theta": 1e6}},
}
"""What llama.cpp can't do otherwise: experts are in every layer, Gemma's scale follows from its size, and no rotary
embedding is dynamic."""
MODELS = (
    ("llama2", "llama"),
    ("llama_biased", "llama"),
    ("mistral", "llama"),
    ("vicuna", "llama"),
    ("qwen2", "qwen2"),
    ("qwen3", "qwen3"),
    ("mixtral", "llama"),
    ("qwen2_moe", "qwen2moe"),
    ("qwen3_moe", "qwen3moe"),
    ("gpt_oss", "gpt-oss"),
    ("granite", "granite"),
    ("olmo2", "olmo2"),
    ("gemma", "gemma"),
    ("gemma2", "gemma2"),
    ("gemma3", "gemma3"),
    ("olmo3", "olmo2"),
    ("olmoe", "olmoe"),
    ("granitemoe", "granitemoe"),
    ("glm", "chatglm"),
    ("glm4", "glm4"),
    ("internlm2", "internlm2"),
    ("phi3", "phi3"),
    ("phi3_window", "phi3"),
    ("smollm3", "smollm3"),
    ("cohere", "command-r"),
    ("cohere_biased", "command-r"),
    ("cohere2", "cohere2"),
    ("stablelm", "stablelm"),
    ("stablelm_parallel", "stablelm"),
)
"""Checkpoints of `tiny_models`, and the architectures that llama.cpp has for them."""
CPU = torch.device("cpu")


def assert_same_model(tiny: TinyModel, file: Path) -> None:
    """The same shape and the same weights, element by element."""
    spec = read_model_spec(file)
    assert replace(spec, family=tiny.spec.family) == tiny.spec
    ours = load_weights(file, spec, torch.float32, CPU)
    theirs = load_weights(tiny.directory, tiny.spec, torch.float32, CPU)
    pairs = list(zip(ours.tensors(), theirs.tensors(), strict=True))
    assert pairs
    for mine, other in pairs:
        torch.testing.assert_close(mine, other, rtol=0, atol=0)


@pytest.mark.parametrize(("family", "architecture"), MODELS)
def test_the_same_model(tmp_path: Path, family: str, architecture: str) -> None:
    tiny = build_tiny_checkpoint(family, tmp_path, **CHANGES.get(family, {}))
    assert_same_model(tiny, convert(tiny, tmp_path / "model.gguf", architecture))
