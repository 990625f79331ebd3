"""POST /v1/messages and /v1/messages/count_tokens, as Claude Code calls them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from moorage.runtime.api import validation
from moorage.runtime.api.http.failures import anthropic_error, foreseen
from moorage.runtime.api.http.messages import with_one_system_message
from moorage.runtime.api.http.openapi import body_of
from moorage.runtime.api.http.prompts import Message, token_ids
from moorage.runtime.api.http.sampling import Extensions, Positive, new_request_id, options_of
from moorage.runtime.api.http.service import service_of
from moorage.runtime.api.http.streams import EventStreamResponse, sse, while_connected
from moorage.runtime.api.http.turns import Turn, start_turn, whole
from moorage.runtime.api.http.unsupported import refuse_unsupported
from moorage.runtime.api.http.usage import Pulse, measured_usage
from moorage.runtime.serving.protocol import Finished, Token, Usage
from moorage.workers.errors import InvalidRequest

router = APIRouter(tags=["Anthropic"])

_BILLING = "x-anthropic-billing-header:"
"""Claude Code puts a text that begins so, and that changes with each request, before its system prompt."""
_NOT_SAID = ("thinking", "redacted_thinking")
"""Blocks of earlier answers that are not sent to a model again."""


class AnthropicMessage(BaseModel):
    """One message: a text, or blocks."""

    model_config = ConfigDict(extra="allow")

    role: Literal["user", "assistant", "system"]
    content: str | list[dict[str, Any]]


class Conversation(Extensions):
    """What is asked, without how it is to be answered."""

    model: str | None = None
    messages: Annotated[list[AnthropicMessage], Field(min_length=1)]
    system: str | list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None

    def read(self) -> list[Message]:
        """The conversation that the chat template gets. Raises InvalidRequest for what is no text."""
        read = []
        if self.system:
            read.append(Message("system", _text(self.system, "system")))
        for place, message in enumerate(self.messages):
            read.append(Message(message.role, _text(message.content, f"messages[{place}].content")))
        return with_one_system_message(read)


class MessagesRequest(Conversation):
    """A conversation that the model goes on with."""

    max_tokens: Positive
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None

    @property
    def stop(self) -> list[str] | None:
        """The stop strings under the name of the other routes."""
        return self.stop_sequences


@router.post("/v1/messages", openapi_extra=body_of(MessagesRequest))
async def messages(request: Request) -> Response:
    """Continues a conversation; with `stream` as server-sent events."""
    service = service_of(request)
    async with service.receiving(request) as (engine, sent):
        asked = await sent.read(MessagesRequest)
        options = options_of(asked, request.headers.get("x-session-id"), max_new_tokens=asked.max_tokens)
        turn = await start_turn(service, engine, sent, options, asked.read(), new_request_id())
    headers = {"request-id": turn.request_id}
    if asked.stream:
        return EventStreamResponse(_frames(asked, turn), turn.generations.aclose, headers)
    said = await whole(request, turn)
    content = [{"type": "text", "text": said.text}]
    message = _message(turn, content, _usage(said.usage, asked), **_stop(said.finished))
    return JSONResponse(message, headers=headers)


@router.post("/v1/messages/count_tokens", openapi_extra=body_of(Conversation))
async def count_tokens(request: Request) -> Response:
    """How many tokens a conversation has as a prompt."""
    async with service_of(request).receiving(request) as (engine, sent):
        asked = await sent.read(Conversation)
        refuse_unsupported(asked.model_extra)
        validation.model_name(asked.model or "", engine.model_info())
        ids = await while_connected(request, token_ids(engine, sent.upload, asked.read()))
    return JSONResponse({"input_tokens": len(ids)})


async def _frames(asked: MessagesRequest, turn: Turn) -> AsyncGenerator[bytes]:
    pulse = Pulse(every_progress=bool(asked.return_progress))
    begun = {"input_tokens": turn.prompt_tokens, "output_tokens": 0}
    yield _event("message_start", message=_message(turn, [], begun))
    yield _event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    try:
        async for item in turn.generations.events():
            event = item[1] if item is not None else None
            if isinstance(event, Token) and event.text:
                pulse.sent()
                yield _event("content_block_delta", index=0, delta={"type": "text_delta", "text": event.text})
            elif isinstance(event, Finished):
                yield _event("content_block_stop", index=0)
                usage = _usage(event.usage, asked)
                yield _event("message_delta", delta=_stop(event), usage=usage)
            elif pulse.due(event):
                pulse.sent()
                yield _event("ping", progress=pulse.progress())
        yield _event("message_stop")
    except Exception as error:  # noqa: BLE001  the status was sent; the error is an event
        yield sse(anthropic_error(foreseen(error)), "error")


def _event(kind: str, **fields: Any) -> bytes:
    return sse({"type": kind, **fields}, kind)


def _message(
    turn: Turn,
    content: Sequence[dict[str, Any]],
    usage: dict[str, Any],
    stop_reason: str | None = None,
    stop_sequence: str | None = None,
) -> dict[str, Any]:
    return {
        "id": f"msg_{turn.request_id}",
        "type": "message",
        "role": "assistant",
        "model": turn.model,
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": stop_sequence,
        "usage": usage,
    }


def _stop(finished: Finished) -> dict[str, str | None]:
    if finished.finish_reason == "length":
        return {"stop_reason": "max_tokens", "stop_sequence": None}
    reason = "end_turn" if finished.stop_string is None else "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": finished.stop_string}


def _usage(usage: Usage, asked: Extensions) -> dict[str, Any]:
    """Tokens that were read anew, and those that were held already, apart."""
    record: dict[str, Any] = {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }
    return {**record, "moorage": measured_usage(usage)} if asked.return_recall else record


def _text(content: str | Sequence[dict[str, Any]], where: str) -> str:
    """The text of a content, without blocks that no model gets again."""
    if isinstance(content, str):
        return content
    texts = []
    for place, block in enumerate(content):
        kind, text = block.get("type"), block.get("text")
        if kind in _NOT_SAID:
            continue
        if kind != "text":
            raise InvalidRequest(
                f"{where}[{place}]: a block of type {str(kind)[:40]!r} is not taken; send text"
            )
        if not isinstance(text, str):
            raise InvalidRequest(f"{where}[{place}].text: is missing; send a string")
        if not text.startswith(_BILLING):
            texts.append(text)
    return "\n".join(texts)
