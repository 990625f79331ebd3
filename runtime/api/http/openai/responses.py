"""POST /v1/responses, as Codex calls it. Nothing is stored: each request sends its whole conversation."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from moorage.runtime.api.http.failures import foreseen, openai_error
from moorage.runtime.api.http.grammars import of_format
from moorage.runtime.api.http.messages import text_of, with_one_system_message
from moorage.runtime.api.http.openapi import body_of
from moorage.runtime.api.http.prompts import Message
from moorage.runtime.api.http.sampling import (
    MOST_OF_A_CHAT,
    Extensions,
    Positive,
    new_request_id,
    options_of,
)
from moorage.runtime.api.http.service import service_of
from moorage.runtime.api.http.streams import EventStreamResponse, sse
from moorage.runtime.api.http.turns import Turn, start_turn, whole
from moorage.runtime.api.http.usage import Pulse, measured_usage
from moorage.runtime.serving.protocol import Finished, Token, Usage
from moorage.runtime.text.grammar import Grammar
from moorage.workers.errors import InvalidRequest

router = APIRouter(tags=["OpenAI"])

_SAME_ROLE = {"developer": "system"}
_ITEMS_OF_THE_CLIENT = ("reasoning", "item_reference", "compaction")
"""Items of earlier answers that are not sent to a model again."""


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

    def read(self) -> list[Message]:
        """The conversation that the chat template gets. Raises InvalidRequest for what is no text."""
        read = [Message("system", self.instructions)] if self.instructions else []
        items = [{"role": "user", "content": self.input}] if isinstance(self.input, str) else self.input or []
        for place, item in enumerate(items):
            kind = item.get("type", "message")
            if kind in _ITEMS_OF_THE_CLIENT:
                continue
            if kind != "message":
                raise InvalidRequest(
                    f"input[{place}]: an item of type {str(kind)[:40]!r} is not taken; send messages"
                )
            read.append(_message(item, f"input[{place}]"))
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
        turn = await start_turn(service, engine, sent, options, asked.read(), new_request_id())
    answer, headers = _Answer(asked, turn), {"x-request-id": turn.request_id}
    if asked.stream:
        return EventStreamResponse(_frames(answer), turn.generations.aclose, headers)
    said = await whole(request, turn)
    return JSONResponse(answer.ended(said.text, said.finished), headers=headers)


class _Answer:
    """The response object of one request, in each of its states."""

    def __init__(self, asked: ResponsesRequest, turn: Turn) -> None:
        self.asked, self.turn = asked, turn
        self.item_id = f"msg_{turn.request_id}"
        self._created_s = int(time.time())

    def body(self, status: str, **more: Any) -> dict[str, Any]:
        asked = self.asked
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
            "parallel_tool_calls": False,
            "tool_choice": "auto",
            "tools": [],
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

    def ended(self, text: str, finished: Finished) -> dict[str, Any]:
        """The response at its end: completed, or incomplete where a limit cut it off."""
        cut = finished.finish_reason == "length"
        item = self.item("incomplete" if cut else "completed", [text_part(text)])
        more = {"incomplete_details": {"reason": "max_output_tokens"}} if cut else {}
        usage = _usage(finished.usage, self.asked)
        return self.body("incomplete" if cut else "completed", output=[item], usage=usage, **more)

    def item(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        """The one output item: the assistant's message."""
        fields = {"id": self.item_id, "type": "message", "status": status}
        return {**fields, "role": "assistant", "content": content}


def text_part(text: str) -> dict[str, Any]:
    """The one part of the message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


async def _frames(answer: _Answer) -> AsyncGenerator[bytes]:
    asked, numbers, texts = answer.asked, itertools.count(), list[str]()
    pulse = Pulse(every_progress=bool(asked.return_progress))
    place = {"item_id": answer.item_id, "output_index": 0, "content_index": 0}

    def event(kind: str, **fields: Any) -> bytes:
        return sse({"type": kind, "sequence_number": next(numbers), **fields}, kind)

    yield event("response.created", response=answer.body("in_progress"))
    yield event("response.in_progress", response=answer.body("in_progress"))
    try:
        item = answer.item("in_progress", [])
        yield event("response.output_item.added", output_index=0, item=item)
        yield event("response.content_part.added", part=text_part(""), **place)
        async for one in answer.turn.generations.events():
            happened = one[1] if one is not None else None
            if isinstance(happened, Token) and happened.text:
                pulse.sent()
                texts.append(happened.text)
                yield event("response.output_text.delta", delta=happened.text, logprobs=[], **place)
            elif isinstance(happened, Finished):
                text = "".join(texts)
                response = answer.ended(text, happened)
                yield event("response.output_text.done", text=text, logprobs=[], **place)
                yield event("response.content_part.done", part=text_part(text), **place)
                yield event("response.output_item.done", output_index=0, item=response["output"][0])
                yield event(f"response.{response['status']}", response=response)
            elif pulse.due(happened):
                pulse.sent()
                progress = {"prompt_progress": pulse.progress()}
                yield event("response.in_progress", response=answer.body("in_progress"), **progress)
    except Exception as error:  # noqa: BLE001  the status was sent; the error is an event
        told = openai_error(foreseen(error))["error"]
        failure = {"code": told["type"], "message": told["message"]}
        yield event("response.failed", response=answer.body("failed", error=failure))


def _message(item: dict[str, Any], where: str) -> Message:
    role, content = item.get("role"), item.get("content")
    if not isinstance(role, str):
        raise InvalidRequest(f"{where}.role: is missing; send user, system or assistant")
    if content is not None and not isinstance(content, str | list):
        raise InvalidRequest(f"{where}.content: is no text; send a string, or parts of type input_text")
    return Message(_SAME_ROLE.get(role, role), text_of(content, f"{where}.content"))


def _usage(usage: Usage, asked: Extensions) -> dict[str, Any]:
    record: dict[str, Any] = {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
    return {**record, "moorage": measured_usage(usage)} if asked.return_recall else record
