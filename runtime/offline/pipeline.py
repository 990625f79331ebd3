"""`pipeline`: generate and score in this process, as LMDeploy's offline API does."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self, Unpack, cast, overload

from moorage.client.types import (
    GenerateEvent,
    GenerateOptions,
    GenerateResult,
    Prompt,
    ScoreEvent,
    ScoreResult,
)
from moorage.runtime.api.guides import with_guide
from moorage.runtime.api.setting_texts import setting_texts
from moorage.runtime.config.load import load_cluster_config
from moorage.runtime.config.schema import ClusterConfig
from moorage.runtime.offline.local_coordinator import LocalCoordinator
from moorage.runtime.offline.requests import encode_prompt, is_one_prompt, request_params
from moorage.runtime.serving.event_stream import EventStream
from moorage.runtime.serving.protocol import (
    Event,
    Finished,
    GenerateParams,
    ModelInfo,
    Progress,
    PromptLogprobs,
    ScoreParams,
    Token,
)
from moorage.runtime.text.tokenizer import TextTokenizer
from moorage.workers.errors import InvalidRequest


def pipeline(
    model: str | Path,
    *,
    preset: str | None = None,
    max_seq_len: int | None = None,
    settings: Mapping[str, object] | None = None,
) -> Pipeline:
    """A pipeline for a model directory, a GGUF file or a cluster file.

    `preset` is memory.preset, `max_seq_len` the longest prompt with its answer. `settings` are keys of a cluster file
    by their full names, such as {"kv_store.dram": "8GiB", "model.weights": "int4"}. What concerns the gRPC server and
    Ray has no effect here. Raises InvalidConfig or InvalidModel as `runtime launch` does.
    """
    named = {"memory.preset": preset, "long_context.max_seq_len": max_seq_len, **(settings or {})}
    overrides = [f"{key}={value}" for key, value in named.items() if value is not None]
    return Pipeline(load_cluster_config(model, overrides))


class Pipeline:
    """A loaded model with its KV stores. Leaving the `with` block, or `close`, gives the memory back.

    Every method takes the options that `moorage.client` has: see `GenerateOptions`. They raise the errors of
    `moorage.client`.
    """

    def __init__(self, config: ClusterConfig) -> None:
        """Loads the model and reserves the memory of its stores. `pipeline` makes the configuration."""
        self._local = LocalCoordinator(config)
        self._most_at_once = config.server.max_running

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def model(self) -> ModelInfo:
        """The loaded model: its name, longest prompt and default sampling."""
        return self._local.coordinator.model_info()

    @property
    def tokenizer(self) -> TextTokenizer:
        """The model's tokenizer, with `encode` and `decode`. Raises InvalidRequest where it has none."""
        tokenizer = self._local.plan.tokenizer
        if tokenizer is None:
            raise InvalidRequest(f"{self.model.name} has no tokenizer.json; give token ids instead of text")
        return tokenizer

    @overload
    def __call__(
        self, prompts: str | bytes, *, raw: bool = False, **options: Unpack[GenerateOptions]
    ) -> GenerateResult: ...

    @overload
    def __call__(
        self, prompts: Prompt | Sequence[Prompt], *, raw: bool = False, **options: Unpack[GenerateOptions]
    ) -> GenerateResult | list[GenerateResult]: ...

    def __call__(
        self, prompts: Prompt | Sequence[Prompt], *, raw: bool = False, **options: Unpack[GenerateOptions]
    ) -> GenerateResult | list[GenerateResult]:
        """Answers one prompt, or a list of prompts in their order; up to `server.max_running` run at once.

        A prompt is text, token ids or chat messages. A model with a chat template answers a text as a user's
        message; `raw` continues it as it is. The first prompt that fails ends the others.
        """
        if is_one_prompt(prompts):
            return self._local.run(self._generate(self._params(prompts, raw, options)))
        requests = [self._params(prompt, raw, options) for prompt in cast("Sequence[Prompt]", prompts)]
        return self._local.run(self._generate_all(requests))

    def stream(
        self, prompt: Prompt, *, raw: bool = False, **options: Unpack[GenerateOptions]
    ) -> Iterator[GenerateEvent]:
        """Progress of the prefill, then tokens as they come, and at last Finished. Closing it stops the work."""
        params = self._params(prompt, raw, options)

        async def start() -> EventStream:
            return self._local.coordinator.generate(params)

        return self._events(self._local.run(start()))

    def score(
        self,
        text: str | bytes | Sequence[int],
        *,
        preset: str | None = None,
        memory: Mapping[str, object] | None = None,
    ) -> ScoreResult:
        """Log-likelihood of a text or of token ids, each given those before it."""
        ids = encode_prompt(self._local.plan.tokenizer, text, raw=True)
        params = ScoreParams(ids, preset, setting_texts(memory or {}), secrets.token_hex(6))
        return self._local.run(self._score(params))

    def get_ppl(self, inputs: Sequence[int] | Sequence[Sequence[int]] | str | Sequence[str]) -> list[float]:
        """Mean negative log-likelihood a token, in nats, of each input: what LMDeploy's `get_ppl` returns.

        exp of it is the perplexity, which `score` has. Raises InvalidRequest for an input of fewer than two tokens.
        """
        found = []
        for one in [inputs] if is_one_prompt(inputs) else inputs:
            loss = self.score(cast("str | Sequence[int]", one)).loss
            if loss is None:
                raise InvalidRequest(
                    "inputs: one has a single token, which nothing comes before; give two or more"
                )
            found.append(loss)
        return found

    def close(self) -> None:
        """Ends all requests and gives the memory back. Safe to call twice."""
        self._local.close()

    def _params(self, prompt: Prompt, raw: bool, options: GenerateOptions) -> GenerateParams:
        special = bool(options.get("parse_special", False))
        ids = encode_prompt(self._local.plan.tokenizer, prompt, raw=raw, parse_special=special)
        return self._local.run(with_guide(self._local.coordinator, request_params(ids, options, self.model)))

    def _events(self, events: EventStream) -> Iterator[GenerateEvent]:
        async def following() -> Progress | Token | PromptLogprobs | Finished | None:
            return await anext(aiter(events), None)

        try:
            while (event := self._local.run(following())) is not None:
                yield cast("GenerateEvent", event)
        finally:
            self._local.run(events.aclose())

    async def _generate(self, params: GenerateParams) -> GenerateResult:
        events = await _all(self._local.coordinator.generate(params))
        return GenerateResult.of(cast("list[GenerateEvent]", events))

    async def _generate_all(self, requests: Sequence[GenerateParams]) -> list[GenerateResult]:
        slots = asyncio.Semaphore(self._most_at_once)

        async def one(params: GenerateParams) -> GenerateResult:
            async with slots:
                return await self._generate(params)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(params)) for params in requests]
        return [task.result() for task in tasks]

    async def _score(self, params: ScoreParams) -> ScoreResult:
        events = await _all(self._local.coordinator.score(params))
        return ScoreResult.of(cast("list[ScoreEvent]", events))


async def _all(events: EventStream) -> list[Event]:
    """The events of one request, which ends when they are not read to their end."""
    try:
        return [event async for event in events]
    finally:
        await events.aclose()
