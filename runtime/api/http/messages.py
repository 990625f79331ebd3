"""Messages of a conversation as clients send them: a role, and a text or parts of which all are text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from moorage.runtime.api.http.prompts import Message
from moorage.runtime.api.http.reasoning import reasoning_fields
from moorage.runtime.api.http.tools.calls import openai_calls
from moorage.workers.errors import InvalidRequest

_TEXT_PARTS = ("text", "input_text", "output_text")
_SAME_ROLE = {"developer": "system"}
"""Newer names of roles that chat templates know under an older one."""
_SEPARATOR = "\n\n"


class ChatMessage(BaseModel):
    """One message as it was sent."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: str | list[dict[str, Any] | str] | None = None


def conversation(messages: Sequence[ChatMessage], field: str = "messages") -> list[Message]:
    """The conversation that the chat template gets. Raises InvalidRequest for what is no text."""
    read = []
    for place, message in enumerate(messages):
        where = f"{field}[{place}]"
        for extra in ("function_call", "audio"):
            if (message.model_extra or {}).get(extra):
                raise InvalidRequest(f"{where}.{extra}: is not supported here; leave it out")
        role = _SAME_ROLE.get(message.role, message.role)
        read.append(Message(role, text_of(message.content, f"{where}.content"), _fields(message, where)))
    return with_one_system_message(read)


def text_of(content: str | Sequence[dict[str, Any] | str] | None, where: str) -> str:
    """The text of a content. Raises InvalidRequest for a part that is no text."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    return "\n".join(_texts(content, where))


def with_one_system_message(messages: Sequence[Message]) -> list[Message]:
    """Joins the system messages at the beginning into one, since templates take at most one."""
    first = next((i for i, message in enumerate(messages) if message.role != "system"), len(messages))
    if first < 2:
        return list(messages)
    joined = _SEPARATOR.join(message.content for message in messages[:first])
    return [Message("system", joined), *messages[first:]]


def _fields(message: ChatMessage, where: str) -> dict[str, Any]:
    """Reasoning and calls of an answer, or the call that a tool answers."""
    sent = message.model_extra or {}
    if message.role == "assistant":
        calls = sent.get("tool_calls")
        reasoned = sent.get("reasoning") or sent.get("reasoning_content")
        fields = reasoning_fields(reasoned, beside_text=bool(calls and message.content))
        return {**fields, "tool_calls": openai_calls(f"{where}.tool_calls", calls)} if calls else fields
    if message.role == "tool":
        names = ("tool_call_id", "name")
        return {name: sent[name] for name in names if isinstance(sent.get(name), str)}
    return {}


def _texts(parts: Sequence[dict[str, Any] | str], where: str) -> Iterator[str]:
    for place, part in enumerate(parts):
        if isinstance(part, str):
            yield part
            continue
        kind, text = part.get("type"), part.get("text")
        if kind not in _TEXT_PARTS:
            raise InvalidRequest(
                f"{where}[{place}]: a part of type {str(kind)[:40]!r} is not taken; send text"
            )
        if not isinstance(text, str):
            raise InvalidRequest(f"{where}[{place}].text: is missing; send a string")
        yield text
