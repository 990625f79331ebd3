"""Judges what clients ask, on records that every protocol makes. Each refusal names the field and the fix."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence

from moorage.runtime.api.access.keys import key_limits, tenant
from moorage.runtime.serving.protocol import (
    GenerateOptions,
    GenerateParams,
    ModelInfo,
    SamplingOptions,
    ScoreOptions,
    ScoreParams,
)
from moorage.runtime.text.grammar import Grammar, check_grammar
from moorage.runtime.text.quoting import quoted
from moorage.workers.errors import InvalidRequest, NotFound
from moorage.workers.hf_generation import SamplingDefaults
from moorage.workers.spec import SamplingSpec

MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 256
MAX_NAME_CHARACTERS = 128
MAX_MEMORY_SETTINGS = 64
MAX_MEMORY_CHARACTERS = 4096
MAX_TEMPERATURE = 100.0
MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY = 0.1, 10.0
"""A factor of ten either way. Beyond it, one token outweighs all others whatever the model predicts."""
MAX_ADDED_PENALTY = 2.0
MAX_LOGPROBS = 20
DEFAULT_MAX_NEW_TOKENS = 256


def generate_params(asked: GenerateOptions, served: ModelInfo, request_id: str) -> GenerateParams:
    """The parameters of a generation of the present tenant, still without its prompt.

    Raises InvalidRequest or NotFound.
    """
    model_name(asked.model, served)
    return GenerateParams(
        prompt=(),
        sampling=sampling(asked.sampling, served.default_sampling),
        max_new_tokens=max_new_tokens(asked.max_new_tokens),
        ignore_eos=asked.ignore_eos,
        stop=stop_strings(asked.stop),
        preset=name("preset", asked.preset),
        memory=memory(asked.memory),
        session=name("session", asked.session),
        request_id=request_id,
        grammar=grammar(asked.grammar),
        inspect=asked.inspect,
        tenant=tenant.get(),
        limits=key_limits.get(),
    )


def score_params(asked: ScoreOptions, served: ModelInfo, request_id: str) -> ScoreParams:
    """The parameters of a scoring of the present tenant, still without its text.

    Raises InvalidRequest or NotFound.
    """
    model_name(asked.model, served)
    return ScoreParams(
        tokens=(),
        preset=name("preset", asked.preset),
        memory=memory(asked.memory),
        request_id=request_id,
        tenant=tenant.get(),
        limits=key_limits.get(),
    )


def model_name(name: str, served: ModelInfo) -> None:
    """Raises NotFound unless the request asks for the served model."""
    if name and name != served.name:
        raise NotFound(f"model: {quoted(name)} is not served here; leave it empty or ask for {served.name!r}")


def max_new_tokens(asked: int | None) -> int:
    """The limit asked for, or its default."""
    if asked is None:
        return DEFAULT_MAX_NEW_TOKENS
    if asked < 1:
        raise InvalidRequest(f"max_new_tokens: {asked} is below 1; ask for 1 or more")
    return asked


def stop_strings(stop: Sequence[str]) -> tuple[str, ...]:
    """The stop strings, few and short enough to be matched at every token."""
    if len(stop) > MAX_STOP_STRINGS:
        raise InvalidRequest(f"stop: {len(stop)} strings are too many; send at most {MAX_STOP_STRINGS}")
    for place, text in enumerate(stop):
        if not 1 <= len(text) <= MAX_STOP_CHARACTERS:
            raise InvalidRequest(
                f"stop[{place}]: has {len(text)} characters; send 1 to {MAX_STOP_CHARACTERS} or leave it out"
            )
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            raise InvalidRequest(f"stop[{place}]: {quoted(text)} has lone surrogates; send valid Unicode")
    return tuple(stop)


def name(field: str, value: str) -> str | None:
    """A short printable name; None when it is empty."""
    if len(value) > MAX_NAME_CHARACTERS or not value.isprintable():
        raise InvalidRequest(
            f"{field}: must be at most {MAX_NAME_CHARACTERS} printable characters; choose a shorter name"
        )
    return value or None


def session_name(value: str, field: str = "name") -> str:
    """The name of a session. Raises InvalidRequest for one that is empty, long or not printable."""
    named = name(field, value)
    if named is None:
        raise InvalidRequest(f"{field}: is empty; give the name of a session")
    return named


def memory(settings: Mapping[str, str]) -> Mapping[str, str]:
    """Settings of memory, few and short; what they may be is judged where they are resolved."""
    if len(settings) > MAX_MEMORY_SETTINGS:
        raise InvalidRequest(
            f"memory: {len(settings)} settings are too many; send at most {MAX_MEMORY_SETTINGS}"
        )
    for key, value in settings.items():
        if max(len(key), len(value)) > MAX_MEMORY_CHARACTERS:
            raise InvalidRequest(
                f"memory: {quoted(key)} and its value must each have at most {MAX_MEMORY_CHARACTERS} characters; "
                "shorten them"
            )
    return settings


def sampling(asked: SamplingOptions, defaults: SamplingDefaults) -> SamplingSpec:
    """The sampling options; the model's `defaults` stand for absent ones. A seed is drawn when none was sent."""
    seed = secrets.randbits(63) if asked.seed is None else asked.seed
    temperature = defaults.temperature if asked.temperature is None else asked.temperature
    top_k = defaults.top_k if asked.top_k is None else asked.top_k
    top_p = defaults.top_p if asked.top_p is None else asked.top_p
    min_p = defaults.min_p if asked.min_p is None else asked.min_p
    penalty = defaults.repetition_penalty if asked.repetition_penalty is None else asked.repetition_penalty
    if not (math.isfinite(top_p) and 0 < top_p <= 1):
        raise InvalidRequest(f"top_p: {top_p} is outside (0, 1]; send 1 to keep every token")
    if not MIN_REPETITION_PENALTY <= penalty <= MAX_REPETITION_PENALTY:  # also of NaN
        allowed = f"{MIN_REPETITION_PENALTY:g} to {MAX_REPETITION_PENALTY:g}"
        raise InvalidRequest(f"repetition_penalty: {penalty:g} is outside {allowed}; send 1 for none")
    if top_k < 0:
        raise InvalidRequest(f"top_k: {top_k} is negative; send 0 to keep every token")
    if seed < 0:
        raise InvalidRequest(f"seed: {seed} is negative; send 0 or more, or leave it out")
    if not 0 <= asked.num_logprobs <= MAX_LOGPROBS:
        raise InvalidRequest(
            f"num_logprobs: {asked.num_logprobs} is outside 0 to {MAX_LOGPROBS}; send a number within"
        )
    return SamplingSpec(
        temperature=_within("temperature", temperature, 0.0, MAX_TEMPERATURE),
        top_k=top_k,
        top_p=top_p,
        min_p=_within("min_p", min_p, 0.0, 1.0),
        repetition_penalty=penalty,
        presence_penalty=_within(
            "presence_penalty", asked.presence_penalty, -MAX_ADDED_PENALTY, MAX_ADDED_PENALTY
        ),
        frequency_penalty=_within(
            "frequency_penalty", asked.frequency_penalty, -MAX_ADDED_PENALTY, MAX_ADDED_PENALTY
        ),
        seed=seed,
        num_logprobs=asked.num_logprobs,
    )


def grammar(asked: Grammar | None) -> Grammar | None:
    """The grammar, of a known kind and short enough; it is compiled later."""
    if asked is not None:
        check_grammar(asked)
    return asked


def token_ids(ids: Sequence[int], vocab_size: int, first: int = 0) -> None:
    """Raises InvalidRequest for the first id outside the vocabulary; `first` is the place of ids[0]."""
    if ids and max(ids) >= vocab_size:
        place = next(place for place, token in enumerate(ids) if token >= vocab_size)
        raise InvalidRequest(
            f"token_ids[{first + place}]: {ids[place]} is outside the vocabulary; "
            f"send ids from 0 to {vocab_size - 1}"
        )


def _within(field: str, value: float, low: float, high: float) -> float:
    if not low <= value <= high:  # also false for NaN
        raise InvalidRequest(f"{field}: {value:g} is not allowed; send a number from {low:g} to {high:g}")
    return value
