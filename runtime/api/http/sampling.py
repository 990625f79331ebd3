"""Fields that every route for generations has, and the record that they become."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from moorage.runtime.api import validation
from moorage.runtime.api.http.grammars import grammar_of
from moorage.runtime.api.http.unsupported import refuse_unsupported
from moorage.runtime.api.setting_texts import setting_texts
from moorage.runtime.serving.protocol import GenerateOptions, GenerateParams, ModelInfo, SamplingOptions
from moorage.runtime.text.grammar import Grammar
from moorage.workers.token_ids import TokenIds

MAX_CHOICES = 16
MOST_OF_A_CHAT = 4096
"""New tokens of a chat that asks for no limit. Memory is reserved for all of them."""

Whole = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]


class StreamOptions(BaseModel):
    """What a stream has beside tokens."""

    include_usage: bool | None = None


class Extensions(BaseModel):
    """Fields of this server, under the same names on every route."""

    model_config = ConfigDict(extra="allow")

    preset: str | None = Field(None, description="A memory preset other than the cluster's, such as full.")
    memory: dict[str, Any] | None = Field(
        None, description="Settings of memory by their keys in a cluster file, such as topk_keys."
    )
    session_id: str | None = Field(
        None,
        description="Session whose KV stays for the next request; the header x-session-id also names it.",
    )
    return_recall: bool | None = Field(
        None, description="Adds what selection attended, and recall, to usage."
    )
    inspect: bool | None = Field(
        None, description="Adds the attention mass on each block of the prompt to the last event. Slower."
    )
    return_progress: bool | None = Field(
        None, description="Sends progress of the prompt as it goes on, not only against silence."
    )
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    ignore_eos: bool | None = None


class Sampled(Extensions):
    """What chat completions and completions share."""

    model: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stop: str | list[str] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63 - MAX_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None

    @property
    def num_choices(self) -> int:
        """Answers to each prompt."""
        return self.n or 1

    @property
    def includes_usage(self) -> bool:
        """Whether the last chunk of a stream is the usage record."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


def new_request_id() -> str:
    """A fresh id for one HTTP request."""
    return secrets.token_hex(8)


def options_of(
    asked: Extensions,
    session: str | None,
    *,
    max_new_tokens: int,
    num_logprobs: int = 0,
    grammar: Grammar | None = None,
) -> GenerateOptions:
    """The record of what a body asks. Raises InvalidRequest for a field that can't be obeyed."""
    refuse_unsupported(asked.model_extra)
    given: dict[str, Any] = {
        name: getattr(asked, name, None) for name in SamplingOptions.__dataclass_fields__
    }
    if given["top_k"] == -1:  # vLLM's word for all
        given["top_k"] = 0
    for penalty in ("presence_penalty", "frequency_penalty"):
        given[penalty] = given[penalty] or 0.0
    given["num_logprobs"] = num_logprobs
    grammar = grammar or grammar_of(asked.model_extra or {})
    stop = getattr(asked, "stop", None) or []
    return GenerateOptions(
        model=getattr(asked, "model", None) or "",
        max_new_tokens=max_new_tokens,
        ignore_eos=bool(asked.ignore_eos),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        preset=asked.preset or "",
        session=asked.session_id or session or "",
        sampling=SamplingOptions(**given),
        grammar=grammar,
        inspect=bool(asked.inspect),
        memory=setting_texts(asked.memory or {}),
    )


def each_choice(
    options: GenerateOptions, served: ModelInfo, request_id: str, num_choices: int
) -> list[GenerateParams]:
    """Checked parameters of each answer to one prompt, still without the prompt; their seeds differ."""
    params = validation.generate_params(options, served, request_id)
    first = params.sampling
    return [
        dataclasses.replace(
            params,
            request_id=f"{request_id}-{i}" if num_choices > 1 else request_id,
            sampling=dataclasses.replace(first, seed=(first.seed + i) % 2**63),
        )
        for i in range(num_choices)
    ]


def with_prompt(params: Sequence[GenerateParams], prompt: TokenIds) -> list[GenerateParams]:
    """The same parameters with their prompt."""
    return [dataclasses.replace(one, prompt=prompt) for one in params]
