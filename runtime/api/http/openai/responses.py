"""POST /v1/responses, as Codex calls it. Nothing is stored: each request sends its whole conversation."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from moorage.runtime.api.failures import foreseen
from moorage.runtime.api.http.failures import openai_error
from moorage.runtime.api.http.grammars import of_format
from moorage.runtime.api.http.messages import with_one_system_message
from moorage.runtime.api.http.openai.response_items import Items, messages_of
from moorage.runtime.api.http.openapi import body_of
from moorage.runtime.api.http.prompts import Message
from moorage.runtime.api.http.reasoning import template_values
from moorage.runtime.api.http.sampling import (
    MOST_OF_A_CHAT,
    Extensions,
    Positive,
    new_request_id,
    options_of,
)
from moorage.runtime.api.http.service import service_of
from moorage.runtime.api.http.streams import EventStreamResponse, sse
from moorage.runtime.api.http.tools.answers import ToolConversation
from moorage.runtime.api.http.tools.asked import openai_tools
from moorage.runtime.api.http.turns import Turn, start_turn, whole
from moorage.runtime.api.http.usage import Pulse, measured_usage
from moorage.runtime.serving.protocol import Finished
from moorage.runtime.serving.usage import Usage
from moorage.runtime.text.grammar import Grammar
from moorage.workers.errors import InvalidRequest

router = APIRouter(tags=["OpenAI"])


class ResponsesRequest(Extensions):
    """A text or items that the model answers."""

    model: str | None = None
    input: str | list[dict[str, Any]] | None = None
    instructions: str | None = None
    max_output_tokens: Positive | None = None
    temperature: float | None = None
    top_p: float | None = None
    stream: bool | None = None
    background: bool | None = None
    previous_response_id: str | None = None
    text: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def read(self) -> list[Message]:
        """The conversation that the chat template gets. Raises InvalidRequest for what is no text."""
        read = [Message("system", self.instructions)] if self.instructions else []
        items = [{"role": "user", "content": self.input}] if isinstance(self.input, str) else self.input or []
        read += messages_of(items)
        if not any(message.role == "user" for message in read):
            read.append(Message("user", ""))  # Codex asks so whether the server answers.
        return with_one_system_message(read)

    def check(self) -> None:
        """Raises InvalidRequest for what needs stored responses."""
        if self.previous_response_id:
            raise InvalidRequest(
                "previous_response_id: no response is stored here; send the whole conversation as input"
            )
        if self.background:
            raise InvalidRequest("background: is not supported here; leave it out")

    @property
    def grammar(self) -> Grammar | None:
        """What the answer must follow."""
        form = (self.text or {}).get("format")
        return None if form is None else of_format(form, "text.format")


@router.post("/v1/responses", openapi_extra=body_of(ResponsesRequest))
async def responses(request: Request) -> Response:
    """Answers; with `stream` as server-sent events."""
    service = service_of(request)
    async with service.receiving(request) as (engine, sent):
        asked = await sent.read(ResponsesRequest)
        asked.check()
        most = asked.max_output_tokens or MOST_OF_A_CHAT
        session = request.headers.get("x-session-id")
        options = options_of(asked, session, max_new_tokens=most, grammar=asked.grammar)
        tools = openai_tools(asked.tools, asked.tool_choice, asked.parallel_tool_calls)
        effort = (asked.reasoning or {}).get("effort")
        values = template_values(engine, asked.chat_template_kwargs, effort=effort)
        talk = ToolConversation.of(engine, asked.read(), tools, values)
        turn = await start_turn(service, engine, sent, options, talk, new_request_id(), "call_")
    answer, headers = _Answer(asked, turn), {"x-request-id": turn.request_id}
    if asked.stream:
        return EventStreamResponse(_frames(answer), turn.generations.aclose, headers)
    finished = await whole(request, turn)
    answer.items.set_whole(_status(finished))
    return JSONResponse(answer.ended(finished), headers=headers)


class _Answer:
    """The response object of one request, in each of its states."""

    def __init__(self, asked: ResponsesRequest, turn: Turn) -> None:
        self.asked, self.turn = asked, turn
        self._tools = turn.tools
        self.items = Items(turn.reader, turn.request_id)
        self._created_s = int(time.time())

    def body(self, status: str, **more: Any) -> dict[str, Any]:
        asked, only = self.asked, self._tools.only
        return {
            "id": f"resp_{self.turn.request_id}",
            "object": "response",
            "created_at": self._created_s,
            "status": status,
            "model": self.turn.model,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "temperature": asked.temperature,
            "top_p": asked.top_p,
            "previous_response_id": None,
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "tool_choice": self._tools.choice if only is None else {"type": "function", "name": only},
            "tools": [{"type": "function", "strict": None, **tool["function"]} for tool in self._tools.tools],
            "reasoning": {"effort": None, "summary": None, **(asked.reasoning or {})},
            "text": {"format": {"type": "text"}},
            "truncation": "disabled",
            "store": False,
            "metadata": {},
            "error": None,
            "incomplete_details": None,
            "output": [],
            "usage": None,
            **more,
        }

    def ended(self, finished: Finished) -> dict[str, Any]:
        """The response at its end: completed, or incomplete where a limit cut it off."""
        status = _status(finished)
        more = {"incomplete_details": {"reason": "max_output_tokens"}} if status == "incomplete" else {}
        return self.body(status, output=self.items.done, usage=self._usage(finished.usage), **more)

    def _usage(self, usage: Usage) -> dict[str, Any]:
        record: dict[str, Any] = {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": self.turn.reader.reasoning_tokens},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }
        return {**record, "moorage": measured_usage(usage)} if self.asked.return_recall else record


async def _frames(answer: _Answer) -> AsyncGenerator[bytes]:
    asked, numbers = answer.asked, itertools.count()
    pulse = Pulse(every_progress=bool(asked.return_progress))

    def frame(event: dict[str, Any]) -> bytes:
        kind = event["type"]
        return sse({"type": kind, "sequence_number": next(numbers), **event}, kind)

    yield frame({"type": "response.created", "response": answer.body("in_progress")})
    yield frame({"type": "response.in_progress", "response": answer.body("in_progress")})
    try:
        async for one in answer.turn.generations.events():
            event = one[1] if one is not None else None
            told = [each for part in answer.turn.reader.read(event) for each in answer.items.of_part(part)]
            if isinstance(event, Finished):
                told += answer.items.ended(_status(event))
                response = answer.ended(event)
                told.append({"type": f"response.{response['status']}", "response": response})
            elif not told and pulse.due(event):
                progress = {"response": answer.body("in_progress"), "prompt_progress": pulse.progress()}
                told = [{"type": "response.in_progress", **progress}]
            for each in told:
                pulse.sent()
                yield frame(each)
    except Exception as error:  # noqa: BLE001  the status was sent; the error is an event
        told_error = openai_error(foreseen(error))["error"]
        failure = {"code": told_error["type"], "message": told_error["message"]}
        yield frame({"type": "response.failed", "response": answer.body("failed", error=failure)})


def _status(finished: Finished) -> str:
    return "incomplete" if finished.finish_reason == "length" else "completed"
