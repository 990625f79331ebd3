"""Answers with reasoning and calls of tools as Chat Completions has them: whole, and in deltas."""

from __future__ import annotations

from typing import Any

from moorage.runtime.api.http.tools.reader import AnswerReader
from moorage.runtime.text.tools.parts import CallArguments, CallBegun, Part, Reasoned, Said


def chat_message(reader: AnswerReader, *, reasoning: bool = True) -> dict[str, Any]:
    """The message of a whole answer, with its reasoning if that is asked for."""
    message: dict[str, Any] = {"role": "assistant", "content": reader.text, "refusal": None}
    if reasoning and reader.reasoning:
        message |= _reasoning(reader.reasoning)
    if not reader.whole_calls:
        return message
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in reader.whole_calls
    ]
    return {**message, "content": reader.text or None, "tool_calls": calls}


def chat_delta(part: Part, reader: AnswerReader, *, reasoning: bool = True) -> dict[str, Any] | None:
    """The delta of one part; None for one that tells a client nothing."""
    match part:
        case Said():
            return {"content": part.text}
        case Reasoned():
            return _reasoning(part.text) if reasoning else None
        case CallBegun():
            function = {"name": part.name, "arguments": ""}
            call = {"index": part.index, "id": reader.calls[part.index].id, "type": "function"}
            return {"tool_calls": [{**call, "function": function}]}
        case CallArguments():
            return {"tool_calls": [{"index": part.index, "function": {"arguments": part.text}}]}
    return None


def _reasoning(text: str) -> dict[str, str]:
    """Reasoning as vLLM and OpenRouter name it, and as DeepSeek does."""
    return {"reasoning": text, "reasoning_content": text}
