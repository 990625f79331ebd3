"""Blocks of messages: texts, reasoning, calls and their results, as clients send them and as answers have them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from moorage.runtime.api.http.prompts import Message
from moorage.runtime.api.http.reasoning import reasoning_fields
from moorage.runtime.api.http.tools.calls import call_of
from moorage.runtime.api.http.tools.reader import AnswerReader
from moorage.runtime.text.tools.parts import (
    CallArguments,
    CallBegun,
    CallBroken,
    CallEnded,
    Part,
    Reasoned,
    Said,
)
from moorage.workers.errors import InvalidRequest

_BILLING = "x-anthropic-billing-header:"
"""Claude Code puts a text that begins so, and that changes with each request, before its system prompt."""
_NOT_SAID = ("thinking", "redacted_thinking")
"""Blocks that are no text. A template gets the reasoning of an answer apart from its text."""
_FAILED = "Error: "
"""What stands before the result of a call that failed."""


def messages_of(role: str, content: str | Sequence[dict[str, Any]], where: str) -> list[Message]:
    """The messages that a chat template gets for one: results of tools are messages of their own, before the text."""
    if isinstance(content, str):
        return [Message(role, content)]
    results, calls, texts, reasoned = [], [], [], []
    for place, block in enumerate(content):
        at = f"{where}[{place}]"
        if block.get("type") == "tool_result" and role == "user":
            results.append(_result(block, at))
        elif block.get("type") == "tool_use" and role == "assistant":
            calls.append(call_of(at, block.get("id"), block.get("name"), block.get("input")))
        elif block.get("type") == "thinking" and isinstance(block.get("thinking"), str):
            reasoned.append(block["thinking"])
        else:
            texts.append((at, block))
    said = _joined(texts)
    if results and not texts:
        return results
    fields = reasoning_fields("\n".join(reasoned), beside_text=bool(calls and said))
    return [*results, Message(role, said, {**fields, "tool_calls": calls} if calls else fields)]


def text_of_blocks(content: str | Sequence[dict[str, Any]], where: str) -> str:
    """The text of a content of texts, without blocks that no model gets again."""
    if isinstance(content, str):
        return content
    return _joined([(f"{where}[{place}]", block) for place, block in enumerate(content)])


def said_blocks(reader: AnswerReader) -> list[dict[str, Any]]:
    """The blocks of a whole answer."""
    calls = [
        {"type": "tool_use", "id": call.id, "name": call.name, "input": json.loads(call.arguments)}
        for call in reader.whole_calls
    ]
    texts = [{"type": "text", "text": reader.text}] if reader.text or not calls else []
    reasoned = [_reasoning(reader.reasoning)] if reader.reasoning else []
    return [*reasoned, *texts, *calls]


class Blocks:
    """The events of the blocks of one answer, of which one is open at a time."""

    def __init__(self, reader: AnswerReader) -> None:
        self._reader = reader
        self._index = -1
        self._open: str | None = None

    def of_part(self, part: Part) -> list[dict[str, Any]]:
        """The events of one part of the answer."""
        match part:
            case Said():
                delta = {"type": "text_delta", "text": part.text}
                return [*self._in_block("text", {"type": "text", "text": ""}), self._delta(delta)]
            case Reasoned():
                delta = {"type": "thinking_delta", "thinking": part.text}
                return [*self._in_block("thinking", _reasoning("")), self._delta(delta)]
            case CallBegun():
                call_id = self._reader.calls[part.index].id
                return self._begun(
                    "call", {"type": "tool_use", "id": call_id, "name": part.name, "input": {}}
                )
            case CallArguments():
                return [self._delta({"type": "input_json_delta", "partial_json": part.text})]
            case CallEnded() | CallBroken():
                return self._closed()

    def ended(self) -> list[dict[str, Any]]:
        """The events of the end. An answer without a word has one empty text."""
        if self._index < 0:
            return [*self._in_block("text", {"type": "text", "text": ""}), *self._closed()]
        return self._closed()

    def _in_block(self, kind: str, block: dict[str, Any]) -> list[dict[str, Any]]:
        return [] if self._open == kind else self._begun(kind, block)

    def _begun(self, kind: str, block: dict[str, Any]) -> list[dict[str, Any]]:
        closed = self._closed()
        self._index, self._open = self._index + 1, kind
        return [*closed, {"type": "content_block_start", "index": self._index, "content_block": block}]

    def _delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}

    def _closed(self) -> list[dict[str, Any]]:
        was, self._open = self._open, None
        return [] if was is None else [{"type": "content_block_stop", "index": self._index}]


def _reasoning(text: str) -> dict[str, Any]:
    """A block of reasoning. What is reasoned here is not signed."""
    return {"type": "thinking", "thinking": text, "signature": ""}


def _result(block: dict[str, Any], where: str) -> Message:
    """What a tool answered, as a message of its own."""
    call_id = block.get("tool_use_id")
    if not isinstance(call_id, str):
        raise InvalidRequest(f"{where}.tool_use_id: is missing; send the id of the call")
    content = block.get("content") or ""
    if not isinstance(content, str | list):
        raise InvalidRequest(f"{where}.content: is no text; send a string, or blocks of text")
    text = text_of_blocks(content, f"{where}.content")
    return Message("tool", f"{_FAILED}{text}" if block.get("is_error") else text, {"tool_call_id": call_id})


def _joined(blocks: Sequence[tuple[str, dict[str, Any]]]) -> str:
    texts = []
    for where, block in blocks:
        kind, text = block.get("type"), block.get("text")
        if kind in _NOT_SAID:
            continue
        if kind != "text":
            raise InvalidRequest(f"{where}: a block of type {str(kind)[:40]!r} is not taken; send text")
        if not isinstance(text, str):
            raise InvalidRequest(f"{where}.text: is missing; send a string")
        if not text.startswith(_BILLING):
            texts.append(text)
    return "\n".join(texts)
