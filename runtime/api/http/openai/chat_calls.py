"""Answers with calls of tools as Chat Completions has them: whole, and in deltas."""

from __future__ import annotations

from typing import Any

from moorage.runtime.api.http.tools.answers import AnswerReader
from moorage.runtime.text.tools.parts import CallArguments, CallBegun, Part, Said


def chat_message(reader: AnswerReader) -> dict[str, Any]:
    """The message of a whole answer."""
    message: dict[str, Any] = {"role": "assistant", "content": reader.text, "refusal": None}
    if not reader.whole_calls:
        return message
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in reader.whole_calls
    ]
    return {**message, "content": reader.text or None, "tool_calls": calls}


def chat_delta(part: Part, reader: AnswerReader) -> dict[str, Any] | None:
    """The delta of one part; None for one that tells a client nothing."""
    match part:
        case Said():
            return {"content": part.text}
        case CallBegun():
            function = {"name": part.name, "arguments": ""}
            call = {"index": part.index, "id": reader.calls[part.index].id, "type": "function"}
            return {"tool_calls": [{**call, "function": function}]}
        case CallArguments():
            return {"tool_calls": [{"index": part.index, "function": {"arguments": part.text}}]}
    return None
