"""POST /v1/chat/completions."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from moorage.runtime.api.failures import foreseen
from moorage.runtime.api.http.failures import openai_error
from moorage.runtime.api.http.generations import Generations
from moorage.runtime.api.http.grammars import with_guides
from moorage.runtime.api.http.messages import ChatMessage, conversation
from moorage.runtime.api.http.openai.chat_calls import chat_delta, chat_message
from moorage.runtime.api.http.openai.logprobs import Spelling, chat_logprob
from moorage.runtime.api.http.openapi import body_of
from moorage.runtime.api.http.reasoning import template_values
from moorage.runtime.api.http.sampling import (
    MOST_OF_A_CHAT,
    Positive,
    Sampled,
    each_choice,
    new_request_id,
    options_of,
    with_prompt,
)
from moorage.runtime.api.http.service import service_of
from moorage.runtime.api.http.streams import DONE, EventStreamResponse, sse, while_connected
from moorage.runtime.api.http.tools.answers import ToolConversation
from moorage.runtime.api.http.tools.asked import ToolsAsked, openai_tools
from moorage.runtime.api.http.tools.reader import AnswerReader
from moorage.runtime.api.http.usage import Pulse, attention_of, openai_usage
from moorage.runtime.api.validation import MAX_LOGPROBS
from moorage.runtime.serving.protocol import Event, Finished, Token
from moorage.runtime.serving.usage import Usage
from moorage.workers.errors import InvalidRequest

router = APIRouter(tags=["OpenAI"])


class ChatRequest(Sampled):
    """A conversation that the model goes on with."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    include_reasoning: bool | None = Field(None, description="false leaves the reasoning out of answers.")
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description="Values for the chat template, such as enable_thinking."
    )

    @property
    def reasoning_asked(self) -> bool:
        """Whether the client gets the reasoning."""
        return self.include_reasoning is not False

    @property
    def tools_asked(self) -> ToolsAsked:
        """The tools of the request."""
        return openai_tools(self.tools, self.tool_choice, self.parallel_tool_calls)


@dataclass
class _Answer:
    """What is common to all parts of one response."""

    asked: ChatRequest
    model: str
    spelling: Spelling
    id: str
    readers: list[AnswerReader]
    created: int = field(default_factory=lambda: int(time.time()))

    def head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def usage(self, usages: Sequence[Usage]) -> dict[str, Any]:
        reasoned = [reader.reasoning_tokens for reader in self.readers if reader.may_reason]
        measured = bool(self.asked.return_recall)
        return openai_usage(usages, measured=measured, reasoning=sum(reasoned) if reasoned else None)


@router.post("/v1/chat/completions", openapi_extra=body_of(ChatRequest))
async def chat_completions(request: Request) -> Response:
    """Continues a conversation; with `stream` as server-sent events."""
    service = service_of(request)
    async with service.receiving(request) as (engine, sent):
        asked = await sent.read(ChatRequest)
        if asked.top_logprobs and not asked.logprobs:
            raise InvalidRequest("top_logprobs: needs logprobs; set logprobs to true, or leave it out")
        served, request_id = engine.model_info(), new_request_id()
        most = asked.max_completion_tokens or asked.max_tokens or MOST_OF_A_CHAT
        options = options_of(
            asked,
            request.headers.get("x-session-id"),
            max_new_tokens=most,
            num_logprobs=asked.top_logprobs or 0,
        )
        values = template_values(engine, asked.chat_template_kwargs, effort=asked.reasoning_effort)
        talk = ToolConversation.of(engine, conversation(asked.messages), asked.tools_asked, values)
        params = each_choice(talk.bound(options), served, request_id, asked.num_choices)
        engine.check_load(params[0].tenant, params[0].limits)
        prompt = await while_connected(request, talk.token_ids(engine, sent.upload, service.replays))
        params = await with_guides(engine, [talk.shown(one) for one in with_prompt(params, prompt)])
        params = [talk.after_reasoning(engine, one) for one in params]
    readers = [talk.reader(engine, service.replays, one) for one in params]
    answer = _Answer(asked, served.name, engine.text.spelling, f"chatcmpl-{request_id}", readers)
    generations = await Generations.start(service, engine, params)
    headers = {"x-request-id": request_id}
    if asked.stream:
        return EventStreamResponse(_frames(answer, generations), generations.aclose, headers)
    async with generations:
        return JSONResponse(await while_connected(request, _complete(answer, generations)), headers=headers)


async def _complete(answer: _Answer, generations: Generations) -> dict[str, Any]:
    number = answer.asked.num_choices
    logprobs: list[list[dict[str, Any]]] = [[] for _ in range(number)]
    ends: list[Finished | None] = [None] * number
    async for item in generations.events():
        if item is None:
            continue
        index, event = item
        answer.readers[index].read(event)
        if isinstance(event, Token) and answer.asked.logprobs:
            logprobs[index].append(chat_logprob(event, answer.spelling))
        elif isinstance(event, Finished):
            ends[index] = event
    choices = [
        {
            "index": index,
            "message": chat_message(reader, reasoning=answer.asked.reasoning_asked),
            "logprobs": {"content": logprobs[index], "refusal": None} if answer.asked.logprobs else None,
            "finish_reason": reader.finish_reason(end) if end else None,
            **attention_of(end),
        }
        for index, (end, reader) in enumerate(zip(ends, answer.readers, strict=True))
    ]
    usages = [end.usage for end in ends if end is not None]
    usage = answer.usage(usages)
    return {**answer.head("chat.completion"), "choices": choices, "usage": usage}


async def _frames(answer: _Answer, generations: Generations) -> AsyncGenerator[bytes]:
    asked, usages = answer.asked, dict[int, Usage]()
    chunks, pulse = _Chunks(answer), Pulse(every_progress=bool(asked.return_progress))
    try:
        async for item in generations.events():
            index, event = item or (0, None)
            frames = chunks.of_event(index, event)
            if isinstance(event, Finished):
                usages[index] = event.usage
            if not frames and pulse.due(event):
                frames = [chunks.chunk(index, {"content": ""}, prompt_progress=pulse.progress())]
            for frame in frames:
                pulse.sent()
                yield frame
        if asked.includes_usage:
            ordered = [usages[index] for index in sorted(usages)]
            yield chunks.usage(answer.usage(ordered))
    except Exception as error:  # noqa: BLE001  the status was sent; the error is an event
        yield sse(openai_error(foreseen(error)))
    yield DONE


class _Chunks:
    """The chunks of one stream. The first one of each choice has the role."""

    def __init__(self, answer: _Answer) -> None:
        self._answer = answer
        self._begun: set[int] = set()

    def of_event(self, index: int, event: Event | None) -> list[bytes]:
        """The chunks of one event; none while its text is incomplete and nothing else is asked for."""
        reader = self._answer.readers[index]
        shown = self._answer.asked.reasoning_asked
        parts = reader.read(event)
        deltas = [delta for part in parts if (delta := chat_delta(part, reader, reasoning=shown))]
        if isinstance(event, Token) and self._answer.asked.logprobs:
            logprobs = {"content": [chat_logprob(event, self._answer.spelling)], "refusal": None}
            first = deltas.pop(0) if deltas else {"content": ""}
            return [self.chunk(index, first, logprobs), *(self.chunk(index, delta) for delta in deltas)]
        frames = [self.chunk(index, delta) for delta in deltas]
        if isinstance(event, Finished):
            reason = reader.finish_reason(event)
            frames.append(self.chunk(index, {}, finish_reason=reason, ended=attention_of(event)))
        return frames

    def chunk(
        self,
        index: int,
        delta: dict[str, Any],
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
        ended: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> bytes:
        """One chunk with a delta of one choice."""
        if index not in self._begun:
            self._begun.add(index)
            delta = {"role": "assistant", "content": "", **delta}
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        choice |= ended or {}
        empty = {"usage": None} if self._answer.asked.includes_usage else {}
        head = self._answer.head("chat.completion.chunk")
        return sse({**head, "choices": [choice], **empty, **more})

    def usage(self, usage: dict[str, Any]) -> bytes:
        """The last chunk, with no choice in it."""
        return sse({**self._answer.head("chat.completion.chunk"), "choices": [], "usage": usage})
