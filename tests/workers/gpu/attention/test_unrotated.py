"""A scaling of attention and the channels that do not rotate: engines against transformers, alone and in a batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from moorage.workers.spec import MemorySpec, RopeSpec, Segment
from tests.engine_driver import Driver, memory
from tests.tiny_models import TinyModel, build_tiny_checkpoint, random_prompt

NUM_TOKENS = 90
YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "partial_rotary_factor": 0.5,
}


def model_of(directory: Path, rope: dict[str, Any]) -> TinyModel:
    return build_tiny_checkpoint("stablelm", directory, rope=rope)


def prompt_logprobs(
    driver: Driver, prompts: dict[int, list[int]], axes: dict[int, MemorySpec]
) -> torch.Tensor:
    """[sessions, tokens - 1] of prompts that one step reads together."""
    opens = tuple(driver.open(i, prompts[i], axes[i]) for i in prompts)
    segments = tuple(
        Segment(i, 0, tuple(ids), sample=False, prompt_logprobs=True) for i, ids in prompts.items()
    )
    results = driver.step(opens=opens, segments=segments)
    rows = {result.session_id: result.prompt_logprobs for result in results}
    return torch.tensor([rows[i] for i in prompts])


def expected(model: TinyModel, prompt: torch.Tensor) -> torch.Tensor:
    rows = torch.log_softmax(model.logits(prompt), -1)
    return rows[:-1].gather(1, prompt[1:, None])[:, 0]


def test_sessions_of_different_scalings_share_a_step(tmp_path: Path) -> None:
    """One keeps the plain embedding of its checkpoint; the other is scaled, as a model of its own would be."""
    plain, scaled = (
        model_of(tmp_path / "plain", {"partial_rotary_factor": 0.5}),
        model_of(tmp_path / "yarn", YARN),
    )
    assert scaled.spec.rope.rotary_dim == plain.spec.head_dim // 2
    driver = Driver(plain.directory, plain.spec)
    prompts = [random_prompt(plain.spec, NUM_TOKENS, seed) for seed in (1, 2)]
    own = scaled_by(memory(), scaled.spec.rope)
    found = prompt_logprobs(driver, {i: ids.tolist() for i, ids in enumerate(prompts)}, {0: memory(), 1: own})
    wanted = torch.stack([expected(plain, prompts[0]), expected(scaled, prompts[1])])
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("chunks", [(NUM_TOKENS,), (32, 7)])
def test_a_partly_rotated_model_with_a_scaling_equals_transformers(
    tmp_path: Path, chunks: tuple[int, ...]
) -> None:
    model = model_of(tmp_path, YARN)
    prompt = random_prompt(model.spec, NUM_TOKENS, 3)
    found = Driver(model.directory, model.spec).prompt_logprobs(prompt.tolist(), memory(), chunks)
    torch.testing.assert_close(found, expected(model, prompt), atol=1e-4, rtol=1e-4)


def scaled_by(axes: MemorySpec, rope: RopeSpec) -> MemorySpec:
    return replace(axes, positions=replace(axes.positions, rope=rope))
