"""A scaling for long sequences alone, as model cards recommend: short ones keep the checkpoint's own frequencies."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from moorage.workers.gpu.model.rope import rope_view
from moorage.workers.spec import RopeSpec
from tests.engine_driver import Driver, memory
from tests.tiny_models import TinyModel, build_tiny_checkpoint
from tests.workers.gpu.engine.test_engine import prompt_of

TRAINED = 64
YARN = RopeSpec(
    "yarn",
    max_position_embeddings=TRAINED,
    original_max_position_embeddings=TRAINED,
    factor=4.0,
    attention_factor=1.0,
)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return build_tiny_checkpoint("llama2", tmp_path_factory.mktemp("llama2"))


def with_rope(model: TinyModel, **changes: object) -> Driver:
    rope = replace(model.spec.rope, max_position_embeddings=TRAINED, **changes)
    return Driver(model.directory, replace(model.spec, rope=rope))


def longer(model: TinyModel) -> RopeSpec:
    return replace(YARN, theta=model.spec.rope.theta, rotary_dim=model.spec.rope.rotary_dim)


@pytest.mark.parametrize(
    ("length", "is_longer"), [(TRAINED - 1, False), (TRAINED, False), (TRAINED + 1, True)]
)
def test_a_prompt_has_the_scaling_of_its_length(llama: TinyModel, length: int, is_longer: bool) -> None:
    prompt, scaled = prompt_of(llama, length), longer(llama)
    got = with_rope(llama, longer=scaled).prompt_logprobs(prompt, memory(), (24,))
    plain = with_rope(llama).prompt_logprobs(prompt, memory(), (24,))
    always = with_rope(llama, **_fields(scaled)).prompt_logprobs(prompt, memory(), (24,))
    assert not torch.equal(plain, always)
    assert torch.equal(got, always if is_longer else plain)


def test_a_session_that_outgrows_the_trained_length_changes_once(llama: TinyModel) -> None:
    """The same frequencies as a longrope that has them as its short and long ones."""
    scaled = longer(llama)
    plain = rope_view(replace(llama.spec.rope, max_position_embeddings=TRAINED), 1).inv_freq
    stretched = plain / rope_view(scaled, 1).inv_freq
    as_longrope = {
        "rope_type": "longrope",
        "original_max_position_embeddings": TRAINED,
        "attention_factor": 1.0,
        "short_factor": tuple(1.0 for _ in stretched),
        "long_factor": tuple(stretched.tolist()),
    }
    prompt = prompt_of(llama, TRAINED - 8)
    got, want = (
        driver.generate(prompt, memory(), (24,), 24)
        for driver in (with_rope(llama, longer=scaled), with_rope(llama, **as_longrope))
    )
    assert [each.token_id for each in got] == [each.token_id for each in want]
    np.testing.assert_allclose([r.logprob for r in got], [r.logprob for r in want], atol=1e-5)
    never = with_rope(llama).generate(prompt, memory(), (24,), 24)
    same = [a.logprob == b.logprob for a, b in zip(got, never, strict=True)]
    assert same[:9] == [True] * 9, "until position TRAINED both have the checkpoint's own frequencies"
    assert not any(same[9:])


def _fields(rope: RopeSpec) -> dict[str, object]:
    names = ("rope_type", "factor", "attention_factor", "original_max_position_embeddings")
    return {name: getattr(rope, name) for name in names}
