"""POST /v1/completions."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from moorage.runtime.api.engine import Engine
from moorage.runtime.api.failures import foreseen
from moorage.runtime.api.http.failures import openai_error
from moorage.runtime.api.http.generations import Asked, Generations
from moorage.runtime.api.http.grammars import with_guides
from moorage.runtime.api.http.openai.logprobs import CompletionLogprobs
from moorage.runtime.api.http.openapi import body_of
from moorage.runtime.api.http.prompts import Prompt, listed_ids, token_ids
from moorage.runtime.api.http.sampling import (
    Sampled,
    Whole,
    each_choice,
    new_request_id,
    options_of,
)
from moorage.runtime.api.http.service import service_of
from moorage.runtime.api.http.streams import DONE, EventStreamResponse, sse, while_connected
from moorage.runtime.api.http.usage import Pulse, attention_of, openai_usage
from moorage.runtime.api.uploads import Upload
from moorage.runtime.api.validation import MAX_LOGPROBS
from moorage.runtime.serving.protocol import (
    Event,
    Finished,
    GenerateParams,
    PromptLogprobs,
    ScoreParams,
    Token,
)
from moorage.runtime.serving.usage import Usage
from moorage.workers.errors import InvalidRequest
from moorage.workers.token_ids import TokenIds

router = APIRouter(tags=["OpenAI"])

DEFAULT_MAX_TOKENS = 16
MOST_PROMPTS = 128


class CompletionRequest(Sampled):
    """Texts, or lists of token ids, that the model goes on with."""

    prompt: str | list[Any] = Field(
        description="A text, a list of texts, a list of token ids, or a list of such lists."
    )
    max_tokens: Whole | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    echo: bool | None = None

    @property
    def scores_prompt(self) -> bool:
        """Whether log-probabilities of the prompt are asked for."""
        return bool(self.echo) and self.logprobs is not None

    @property
    def most_tokens(self) -> int:
        """Tokens to generate at most. Raises InvalidRequest for none without `echo`."""
        if self.max_tokens == 0 and not self.echo:
            raise InvalidRequest("max_tokens: 0 is below 1; ask for 1 or more, or set echo")
        if self.scores_prompt and (self.logprobs or 0) > 1:
            raise InvalidRequest(
                f"logprobs: {self.logprobs} with echo is more than is computed; ask for 0 or 1"
            )
        return DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens


@dataclass(slots=True)
class _Choice:
    """One answer: its prompt, what was not shown yet, and how it ended."""

    prompt: TokenIds
    echoed: str
    """The prompt's text, until it was shown; empty where it is not asked for."""
    logprobs: CompletionLogprobs | None
    scores_prompt: bool
    finish_reason: str | None = None
    usage: Usage | None = None
    attention: dict[str, Any] = field(default_factory=dict)

    def take(self, event: Event) -> str:
        """Adds one event; returns the text that it brings, with an echoed prompt before the first one."""
        match event:
            case Token():
                if self.logprobs is not None:
                    self._begin(self.logprobs)
                    self.logprobs.add(event.token_id, event.logprob, event.top_logprobs)
                return self._after_echo(event.text)
            case PromptLogprobs() if self.scores_prompt and self.logprobs is not None:
                self._add_prompt(self.logprobs, event)
            case Finished():
                self.finish_reason, self.usage = event.finish_reason, event.usage
                self.attention = attention_of(event)
                return self._after_echo("")
        return ""

    def part(self, index: int, text: str) -> dict[str, Any]:
        """The choice of a chunk, or of the whole answer, with all log-probabilities since the last one."""
        return {
            "index": index,
            "text": text,
            "logprobs": self.logprobs.take() if self.logprobs is not None and self.logprobs.tokens else None,
            "finish_reason": self.finish_reason,
            **self.attention,
        }

    def _after_echo(self, text: str) -> str:
        echoed, self.echoed = self.echoed, ""
        return echoed + text

    def _begin(self, logprobs: CompletionLogprobs) -> None:
        """A prompt that is shown without log-probabilities still moves the offsets."""
        if self.echoed and not self.scores_prompt:
            logprobs.end = len(self.echoed)

    def _add_prompt(self, logprobs: CompletionLogprobs, scored: PromptLogprobs) -> None:
        if scored.start == 1:
            logprobs.add(self.prompt[0], None, ())
        for place, (logprob, likeliest) in enumerate(zip(scored.logprobs, scored.likeliest, strict=True)):
            top = (likeliest,) if logprobs.num_top else ()
            logprobs.add(self.prompt[scored.start + place], logprob, top)


@dataclass
class _Answer:
    """What is common to all parts of one response."""

    asked: CompletionRequest
    model: str
    id: str
    choices: list[_Choice]
    num_prompts: int
    created: int = field(default_factory=lambda: int(time.time()))

    def body(self, **more: Any) -> dict[str, Any]:
        head = {"id": self.id, "object": "text_completion", "created": self.created, "model": self.model}
        return {**head, **more}

    def usage(self) -> dict[str, Any]:
        usages = [choice.usage for choice in self.choices if choice.usage is not None]
        return openai_usage(usages, self.num_prompts, measured=bool(self.asked.return_recall))


@router.post("/v1/completions", openapi_extra=body_of(CompletionRequest))
async def completions(request: Request) -> Response:
    """Continues texts; with `stream` as server-sent events."""
    service = service_of(request)
    async with service.receiving(request) as (engine, sent):
        asked = await sent.read(CompletionRequest)
        served, request_id = engine.model_info(), new_request_id()
        options = options_of(
            asked,
            request.headers.get("x-session-id"),
            max_new_tokens=max(1, asked.most_tokens),
            num_logprobs=asked.logprobs or 0,
        )
        prompts = _prompts(asked.prompt)
        params = each_choice(options, served, request_id, asked.num_choices * len(prompts))
        engine.check_load(params[0].tenant, params[0].limits)
        params = await with_guides(engine, params)
        choices = await while_connected(request, _choices(engine, sent.upload, asked, prompts))
    answer = _Answer(asked, served.name, f"cmpl-{request_id}", choices, len(prompts))
    works = [_work(asked, one, choice.prompt) for one, choice in zip(params, choices, strict=True)]
    generations = await Generations.start(service, engine, works)
    headers = {"x-request-id": request_id}
    if asked.stream:
        return EventStreamResponse(_frames(answer, generations), generations.aclose, headers)
    async with generations:
        return JSONResponse(await while_connected(request, _complete(answer, generations)), headers=headers)


async def _complete(answer: _Answer, generations: Generations) -> dict[str, Any]:
    texts: list[list[str]] = [[] for _ in answer.choices]
    async for item in generations.events():
        if item is not None:
            index, event = item
            texts[index].append(answer.choices[index].take(event))
    choices = [choice.part(index, "".join(texts[index])) for index, choice in enumerate(answer.choices)]
    return answer.body(choices=choices, usage=answer.usage())


async def _frames(answer: _Answer, generations: Generations) -> AsyncGenerator[bytes]:
    asked, pulse = answer.asked, Pulse(every_progress=bool(answer.asked.return_progress))
    empty = {"usage": None} if asked.includes_usage else {}
    try:
        async for item in generations.events():
            index, event = item or (0, None)
            choice = answer.choices[index]
            text = choice.take(event) if event is not None else ""
            told = isinstance(event, Finished) or (isinstance(event, Token) and choice.logprobs is not None)
            progress = {}
            if not text and not told:
                if not pulse.due(event):
                    continue
                progress = {"prompt_progress": pulse.progress()}
            pulse.sent()
            yield sse(answer.body(choices=[choice.part(index, text)], **empty, **progress))
        if asked.includes_usage:
            yield sse(answer.body(choices=[], usage=answer.usage()))
    except Exception as error:  # noqa: BLE001  the status was sent; the error is an event
        yield sse(openai_error(foreseen(error)))
    yield DONE


def _prompts(sent: str | list[Any]) -> list[Prompt]:
    """The prompts of a body, one for each text or list of token ids."""
    if isinstance(sent, str):
        return [sent]
    if not sent:
        raise InvalidRequest("prompt: is empty; send at least one token")
    if isinstance(sent[0], int):
        return [listed_ids("prompt", sent)]
    if len(sent) > MOST_PROMPTS:
        raise InvalidRequest(f"prompt: {len(sent)} prompts are too many; send at most {MOST_PROMPTS}")
    prompts: list[Prompt] = []
    for place, one in enumerate(sent):
        if not isinstance(one, str | list) or not one:
            raise InvalidRequest(f"prompt[{place}]: is no prompt; send texts, or lists of token ids")
        prompts.append(one if isinstance(one, str) else listed_ids(f"prompt[{place}]", one))
    return prompts


async def _choices(
    engine: Engine, upload: Upload, asked: CompletionRequest, prompts: Sequence[Prompt]
) -> list[_Choice]:
    """Every choice before it begins: `n` for each prompt, one after the other."""
    choices = []
    for prompt in prompts:
        ids = await token_ids(engine, upload, prompt)
        echoed = ""
        if asked.echo:
            echoed = prompt if isinstance(prompt, str) else await engine.text.decode(ids)
        for _ in range(asked.num_choices):
            logprobs = None
            if asked.logprobs is not None:
                logprobs = CompletionLogprobs(engine.text.spelling, asked.logprobs)
            choices.append(_Choice(ids, echoed, logprobs, asked.scores_prompt))
    return choices


def _work(asked: CompletionRequest, params: GenerateParams, prompt: TokenIds) -> Asked:
    """What the engine is asked for one choice; without new tokens it scores the prompt."""
    if asked.most_tokens:
        return replace(params, prompt=prompt, prompt_logprobs=asked.scores_prompt)
    return ScoreParams(prompt, params.preset, params.memory, params.request_id, params.tenant, params.limits)
