"""POST /v1/messages and /v1/messages/count_tokens, as Claude Code calls them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from moorage.runtime.api import validation
from moorage.runtime.api.engine import Engine
from moorage.runtime.api.failures import foreseen
from moorage.runtime.api.http.anthropic.blocks import Blocks, messages_of, said_blocks, text_of_blocks
from moorage.runtime.api.http.failures import anthropic_error
from moorage.runtime.api.http.grammars import of_format
from moorage.runtime.api.http.messages import with_one_system_message
from moorage.runtime.api.http.openapi import body_of
from moorage.runtime.api.http.prompts import Message
from moorage.runtime.api.http.reasoning import template_values
from moorage.runtime.api.http.sampling import Extensions, Positive, new_request_id, options_of
from moorage.runtime.api.http.service import service_of
from moorage.runtime.api.http.streams import EventStreamResponse, sse, while_connected
from moorage.runtime.api.http.tools.answers import ToolConversation
from moorage.runtime.api.http.tools.asked import anthropic_tools
from moorage.runtime.api.http.turns import Turn, start_turn, whole
from moorage.runtime.api.http.unsupported import refuse_unsupported
from moorage.runtime.api.http.usage import Pulse, measured_usage
from moorage.runtime.serving.protocol import Finished
from moorage.runtime.serving.usage import Usage
from moorage.runtime.text.grammar import Grammar

router = APIRouter(tags=["Anthropic"])

_REASONS = {"enabled": True, "adaptive": True, "disabled": False}
"""Whether to reason, by type of `thinking`. Without it the chat template decides."""


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
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def read(self) -> list[Message]:
        """The messages that the chat template gets. Raises InvalidRequest for what is neither text nor a call."""
        read = []
        if self.system:
            read.append(Message("system", text_of_blocks(self.system, "system")))
        for place, message in enumerate(self.messages):
            read += messages_of(message.role, message.content, f"messages[{place}].content")
        return with_one_system_message(read)

    def talk(self, engine: Engine) -> ToolConversation:
        """The conversation with its tools."""
        reasons = _REASONS.get(str((self.thinking or {}).get("type")))
        values = template_values(engine, self.chat_template_kwargs, reasons=reasons)
        return ToolConversation.of(engine, self.read(), anthropic_tools(self.tools, self.tool_choice), values)


class MessagesRequest(Conversation):
    """A conversation that the model goes on with."""

    max_tokens: Positive
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    output_config: dict[str, Any] | None = None

    @property
    def grammar(self) -> Grammar | None:
        """What the answer must follow."""
        form = (self.output_config or {}).get("format")
        return None if form is None else of_format(form, "output_config.format")

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
        options = options_of(
            asked,
            request.headers.get("x-session-id"),
            max_new_tokens=asked.max_tokens,
            grammar=asked.grammar,
        )
        turn = await start_turn(
            service, engine, sent, options, asked.talk(engine), new_request_id(), "toolu_"
        )
    headers = {"request-id": turn.request_id}
    if asked.stream:
        return EventStreamResponse(_frames(asked, turn), turn.generations.aclose, headers)
    finished = await whole(request, turn)
    usage = _usage(finished.usage, asked)
    message = _message(turn, said_blocks(turn.reader), usage, **_stop(turn, finished))
    return JSONResponse(message, headers=headers)


@router.post("/v1/messages/count_tokens", openapi_extra=body_of(Conversation))
async def count_tokens(request: Request) -> Response:
    """How many tokens a conversation has as a prompt."""
    service = service_of(request)
    async with service.receiving(request) as (engine, sent):
        asked = await sent.read(Conversation)
        refuse_unsupported(asked.model_extra)
        validation.model_name(asked.model or "", engine.model_info())
        talk = asked.talk(engine)
        ids = await while_connected(request, talk.token_ids(engine, sent.upload, service.replays))
    return JSONResponse({"input_tokens": len(ids)})


async def _frames(asked: MessagesRequest, turn: Turn) -> AsyncGenerator[bytes]:
    pulse, blocks = Pulse(every_progress=bool(asked.return_progress)), Blocks(turn.reader)
    begun = {"input_tokens": turn.prompt_tokens, "output_tokens": 0}
    yield _event("message_start", message=_message(turn, [], begun))
    try:
        async for item in turn.generations.events():
            event = item[1] if item is not None else None
            told = [one for part in turn.reader.read(event) for one in blocks.of_part(part)]
            if isinstance(event, Finished):
                told += blocks.ended()
                usage = _usage(event.usage, asked)
                told.append({"type": "message_delta", "delta": _stop(turn, event), "usage": usage})
            elif not told and pulse.due(event):
                told = [{"type": "ping", "progress": pulse.progress()}]
            for one in told:
                pulse.sent()
                yield sse(one, one["type"])
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


def _stop(turn: Turn, finished: Finished) -> dict[str, str | None]:
    reason = turn.reader.finish_reason(finished)
    known = {"length": "max_tokens", "tool_calls": "tool_use"}.get(reason)
    if known is not None:
        return {"stop_reason": known, "stop_sequence": None}
    ended = "end_turn" if finished.stop_string is None else "stop_sequence"
    return {"stop_reason": ended, "stop_sequence": finished.stop_string}


def _usage(usage: Usage, asked: Extensions) -> dict[str, Any]:
    """Tokens that were read anew, and those that were held already, apart."""
    record: dict[str, Any] = {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }
    return {**record, "moorage": measured_usage(usage)} if asked.return_recall else record
