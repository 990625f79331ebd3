"""Calls of earlier answers, and what the tools answered, as clients send them back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from moorage.runtime.api.http.prompts import Message
from moorage.runtime.api.http.tools.asked import MOST_DEPTH, depth
from moorage.runtime.text.tools.strict_json import strict_json
from moorage.workers.errors import InvalidRequest

MOST_CALLS = 1024
"""Most calls of one message."""


def call_of(where: str, call_id: Any, name: Any, arguments: Any) -> dict[str, Any]:
    """One call as chat templates get it; its arguments are an object. Raises InvalidRequest with the wrong field."""
    if not isinstance(call_id, str):
        raise InvalidRequest(f"{where}.id: is missing; send the id that the call had")
    if not isinstance(name, str) or not name:
        raise InvalidRequest(f"{where}.name: is missing; send the name of the tool that was called")
    if isinstance(arguments, str):
        arguments = strict_json(arguments or "{}")
    if not isinstance(arguments, dict):
        raise InvalidRequest(f"{where}.arguments: are no JSON object; send them as the call had them")
    if depth(arguments) > MOST_DEPTH:
        raise InvalidRequest(f"{where}.arguments: are nested more than {MOST_DEPTH} deep; send flatter ones")
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def openai_calls(where: str, sent: Any) -> list[dict[str, Any]]:
    """The `tool_calls` of a message of Chat Completions."""
    if not isinstance(sent, list) or len(sent) > MOST_CALLS:
        raise InvalidRequest(f"{where}: must be a list of at most {MOST_CALLS} calls")
    calls = []
    for place, call in enumerate(sent):
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping):
            raise InvalidRequest(f"{where}[{place}].function: is missing; send the name and the arguments")
        calls.append(
            call_of(f"{where}[{place}]", call.get("id"), function.get("name"), function.get("arguments"))
        )
    return calls


def with_names(messages: Sequence[Message]) -> list[Message]:
    """The same with the name of the called tool in each answer of a tool, since some templates write it."""
    names = {call["id"]: call["function"]["name"] for message in messages for call in _calls(message)}
    return [
        replace(message, fields={"name": names[found], **message.fields})
        if (found := message.fields.get("tool_call_id")) in names
        else message
        for message in messages
    ]


def refuse_calls(messages: Sequence[Message], template: str) -> None:
    """Raises InvalidRequest if a conversation has calls, for a model whose chat template has no place for tools."""
    for message in messages:
        if message.role == "tool" or message.fields.get("tool_calls"):
            what = "answers of tools" if message.role == "tool" else "tool_calls"
            raise InvalidRequest(
                f"messages: have {what}, and the model's chat template ({template}) has no place for tools; leave "
                "them out, or serve a model that knows tools"
            )


def _calls(message: Message) -> Iterable[Mapping[str, Any]]:
    calls: Iterable[Mapping[str, Any]] = message.fields.get("tool_calls", ())
    return calls
