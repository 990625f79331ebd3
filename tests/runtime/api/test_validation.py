"""What a client may ask, judged on records: the same whatever protocol the client speaks."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest

from moorage.runtime.api import validation
from moorage.runtime.serving.protocol import (
    GenerateOptions,
    ModelInfo,
    SamplingOptions,
    ScoreOptions,
)
from moorage.workers.errors import InvalidRequest, MoorageError, NotFound
from moorage.workers.hf_generation import SamplingDefaults
from moorage.workers.spec import SamplingSpec

DEFAULTS = SamplingDefaults(temperature=0.5, top_k=20, top_p=0.75, min_p=0.125, repetition_penalty=1.25)
SERVED = ModelInfo("toy", "llama", "float32", 260, 4096, "full", default_sampling=DEFAULTS)


def test_a_client_that_asks_nothing_gets_the_defaults_of_server_and_model() -> None:
    params = validation.generate_params(GenerateOptions(), SERVED, "1f6c")
    assert (params.max_new_tokens, params.stop, params.preset, params.session) == (256, (), None, None)
    assert params.request_id == "1f6c"
    drawn = params.sampling
    assert drawn == SamplingSpec(0.5, 20, 0.75, 0.125, 1.25, seed=drawn.seed)
    assert drawn.seed != validation.sampling(SamplingOptions(), DEFAULTS).seed, "each request draws its own"


def test_what_a_client_asks_goes_before_the_defaults() -> None:
    sampling = SamplingOptions(0.0, 0, 1.0, 0.0, 1.0, -2.0, 2.0, seed=0, num_logprobs=20)
    asked = GenerateOptions("toy", 1, True, ("a", "b"), "full", "talk", sampling)
    params = validation.generate_params(asked, SERVED, "")
    assert params.sampling == SamplingSpec(0.0, 0, 1.0, 0.0, 1.0, -2.0, 2.0, 0, 20)
    assert (params.max_new_tokens, params.ignore_eos, params.stop) == (1, True, ("a", "b"))
    assert (params.preset, params.session) == ("full", "talk")


@pytest.mark.parametrize(
    ("asked", "error", "says"),
    [
        (GenerateOptions(model="other"), NotFound, "model: 'other' is not served here"),
        (GenerateOptions(max_new_tokens=0), InvalidRequest, "max_new_tokens: 0 is below 1"),
        (GenerateOptions(stop=("",)), InvalidRequest, r"stop\[0\]: has 0 characters"),
        (GenerateOptions(stop=("x",) * 17), InvalidRequest, "stop: 17 strings are too many"),
        (GenerateOptions(stop=("\ud800",)), InvalidRequest, r"stop\[0\]: .* lone surrogates"),
        (GenerateOptions(preset="a\n"), InvalidRequest, "preset: must be at most 128 printable"),
        (GenerateOptions(session="s" * 129), InvalidRequest, "session: must be at most 128 printable"),
        (
            GenerateOptions(memory={"topk": "1" * 5000}),
            InvalidRequest,
            "memory: 'topk' and its value must each",
        ),
        (
            GenerateOptions(memory={str(n): "" for n in range(65)}),
            InvalidRequest,
            "memory: 65 settings are too",
        ),
    ],
)
def test_a_refusal_names_the_field_and_the_fix(
    asked: GenerateOptions, error: type[MoorageError], says: str
) -> None:
    with pytest.raises(error, match=says):
        validation.generate_params(asked, SERVED, "")


@pytest.mark.parametrize("field", [field.name for field in fields(SamplingOptions)])
@pytest.mark.parametrize("value", [-3.0, 101.0, math.nan])
def test_every_sampling_option_has_bounds(field: str, value: float) -> None:
    if field in ("top_k", "seed", "num_logprobs"):
        if value != -3.0:
            return  # Protocols make integers of them, and only num_logprobs has an upper bound.
        value = -3
    with pytest.raises(InvalidRequest, match=f"^{field}: "):
        validation.sampling(replace(SamplingOptions(), **{field: value}), SamplingDefaults())


def test_a_scoring_may_choose_model_and_preset() -> None:
    params = validation.score_params(ScoreOptions("toy", "full"), SERVED, "1f6c")
    assert (params.preset, params.request_id) == ("full", "1f6c")
    chosen = validation.score_params(ScoreOptions(memory={"topk": "64"}), SERVED, "")
    assert chosen.memory == {"topk": "64"}
    with pytest.raises(NotFound):
        validation.score_params(ScoreOptions("other"), SERVED, "")
