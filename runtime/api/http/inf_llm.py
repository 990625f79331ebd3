"""POST /chat as the web interface of InfLLM has it: a prompt and a history, answered by plain text in events."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from moorage.runtime.api.failures import foreseen
from moorage.runtime.api.http.messages import ChatMessage, conversation
from moorage.runtime.api.http.openapi import body_of
from moorage.runtime.api.http.prompts import Message
from moorage.runtime.api.http.sampling import Extensions, new_request_id, options_of
from moorage.runtime.api.http.service import service_of
from moorage.runtime.api.http.streams import EventStreamResponse
from moorage.runtime.api.http.tools.answers import ToolConversation
from moorage.runtime.api.http.turns import Turn, start_turn, whole
from moorage.runtime.api.http.usage import Pulse
from moorage.runtime.serving.protocol import Token
from moorage.workers.errors import InvalidRequest

router = APIRouter(tags=["InfLLM"])

MAX_NEW_TOKENS = 512
"""InfLLM's own limit, and its temperature below."""
_ROLES = {"bot": "assistant"}


class ChatRequest(Extensions):
    """What a user says, after what was said before."""

    prompt: str | None = None
    history: list[ChatMessage] = Field(default_factory=list)
    temperature: float | None = 0.7

    def read(self) -> list[Message]:
        """The conversation that the chat template gets. Raises InvalidRequest without a prompt."""
        if not self.prompt:
            raise InvalidRequest("prompt: is missing; send what the user says")
        said = [ChatMessage(role=_ROLES.get(one.role, one.role), content=one.content) for one in self.history]
        return [*conversation(said, "history"), Message("user", self.prompt)]


@router.post("/chat", openapi_extra=body_of(ChatRequest))
async def chat(request: Request) -> Response:
    """Answers by server-sent events, or with `?stream=false` at once."""
    service = service_of(request)
    async with service.receiving(request) as (engine, sent):
        asked = await sent.read(ChatRequest)
        options = options_of(asked, request.headers.get("x-session-id"), max_new_tokens=MAX_NEW_TOKENS)
        talk = ToolConversation(asked.read())
        turn = await start_turn(service, engine, sent, options, talk, new_request_id())
    if request.query_params.get("stream", "true").lower() != "false":
        return EventStreamResponse(_frames(turn), turn.generations.aclose)
    await whole(request, turn)
    return JSONResponse({"response": turn.reader.text})


async def _frames(turn: Turn) -> AsyncGenerator[bytes]:
    pulse = Pulse(every_progress=False)
    try:
        async for item in turn.generations.events():
            event: Any = item[1] if item is not None else None
            if isinstance(event, Token) and event.text:
                pulse.sent()
                yield _data(event.text)
            elif pulse.due(event):
                pulse.sent()
                yield _data("")
    except Exception as error:  # noqa: BLE001  the status was sent; the error is an event
        yield _data(f"[Error: {foreseen(error)}]")


def _data(text: str) -> bytes:
    """One event; each line of its text is a line of data."""
    return "".join(f"data: {line}\n" for line in text.split("\n")).encode() + b"\n"
