"""Items of Responses: messages, reasoning, calls and their outputs, as clients send them and answers have them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from moorage.runtime.api.http.messages import text_of
from moorage.runtime.api.http.prompts import Message
from moorage.runtime.api.http.reasoning import reasoning_fields
from moorage.runtime.api.http.tools.calls import call_of
from moorage.runtime.api.http.tools.reader import AnswerReader, Call
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

_SAME_ROLE = {"developer": "system"}
_ITEMS_OF_THE_CLIENT = ("item_reference", "compaction")
"""Items of earlier answers that are not sent to a model again."""

Event = dict[str, Any]


def messages_of(items: Sequence[dict[str, Any]]) -> list[Message]:
    """The messages that a chat template gets. Calls belong to the message before them if that is an answer, and
    reasoning to the answer or the calls after it."""
    read: list[Message] = []
    reasoned = ""
    for place, item in enumerate(items):
        kind, where = item.get("type", "message"), f"input[{place}]"
        if kind in _ITEMS_OF_THE_CLIENT:
            continue
        if kind == "reasoning":
            reasoned = _reasoned(item)
        elif kind == "function_call":
            call = call_of(where, item.get("call_id"), item.get("name"), item.get("arguments"))
            said = read.pop() if read and read[-1].role == "assistant" else Message("assistant", "")
            calls = [*said.fields.get("tool_calls", ()), call]
            fields = reasoning_fields(reasoned, beside_text=bool(said.content))
            read.append(replace(said, fields={**said.fields, **fields, "tool_calls": calls}))
            reasoned = ""
        elif kind == "function_call_output":
            read.append(_output(item, where))
        elif kind == "message":
            message = _message(item, where)
            if message.role == "assistant":
                message = replace(message, fields=reasoning_fields(reasoned))
            read.append(message)
            reasoned = ""
        else:
            raise InvalidRequest(
                f"{where}: an item of type {str(kind)[:40]!r} is not taken; send messages and function calls"
            )
    return read


class Items:
    """The output items of one answer, and the events that tell them. One item is open at a time."""

    def __init__(self, reader: AnswerReader, request_id: str) -> None:
        self._reader, self._request_id = reader, request_id
        self.done: list[dict[str, Any]] = []
        """Items that are complete."""
        self._open: str | None = None
        self._text = ""

    def set_whole(self, status: str) -> None:
        """The items of a whole answer: its reasoning, its text, then its calls."""
        text, calls = self._reader.text, self._reader.whole_calls
        if self._reader.reasoning:
            self.done.append(self._reasoning_item([_reasoning_part(self._reader.reasoning)]))
        if text or not calls:
            self.done.append(self._message_item(status, [_text_part(text)]))
        self.done += [_call_item(call, "completed") for call in calls]

    def of_part(self, part: Part) -> list[Event]:
        """The events of one part of the answer."""
        match part:
            case Said():
                events = [] if self._open == "message" else [*self._closed(), *self._message_begun()]
                self._text += part.text
                delta = {"delta": part.text, "logprobs": [], **self._place("message")}
                return [*events, {"type": "response.output_text.delta", **delta}]
            case Reasoned():
                events = [] if self._open == "reasoning" else [*self._closed(), *self._reasoning_begun()]
                self._text += part.text
                delta = {"delta": part.text, **self._place("reasoning")}
                return [*events, {"type": "response.reasoning_text.delta", **delta}]
            case CallBegun():
                events = self._closed()
                self._open = "call"
                item = _call_item(self._reader.calls[part.index], "in_progress")
                return [*events, self._item_event("added", {**item, "arguments": ""})]
            case CallArguments():
                return [
                    {
                        "type": "response.function_call_arguments.delta",
                        "delta": part.text,
                        **self._place("call"),
                    }
                ]
            case CallEnded():
                return self._closed()
            case CallBroken():
                return self._closed("incomplete")

    def ended(self, status: str) -> list[Event]:
        """The events of the end. An answer without a word has one empty message."""
        begun = [] if self.done or self._open else self._message_begun()
        return [*begun, *self._closed(status)]

    def _reasoning_begun(self) -> list[Event]:
        self._open, self._text = "reasoning", ""
        part = {"part": _reasoning_part(""), **self._place("reasoning")}
        item = self._item_event("added", self._reasoning_item([]))
        return [item, {"type": "response.content_part.added", **part}]

    def _message_begun(self) -> list[Event]:
        self._open, self._text = "message", ""
        item = self._message_item("in_progress", [])
        part = {"part": _text_part(""), **self._place("message")}
        return [self._item_event("added", item), {"type": "response.content_part.added", **part}]

    def _closed(self, status: str = "completed") -> list[Event]:
        """Ends the open item."""
        was, self._open = self._open, None
        if was is None:
            return []
        if was == "reasoning":
            part, place = _reasoning_part(self._text), self._place("reasoning")
            item = self._reasoning_item([part])
            events = [
                {"type": "response.reasoning_text.done", "text": self._text, **place},
                {"type": "response.content_part.done", "part": part, **place},
            ]
        elif was == "message":
            part, place = _text_part(self._text), self._place("message")
            item = self._message_item(status, [part])
            events = [
                {"type": "response.output_text.done", "text": self._text, "logprobs": [], **place},
                {"type": "response.content_part.done", "part": part, **place},
            ]
        else:
            call = self._reader.calls[-1]
            item = _call_item(call, status)
            told = {"name": call.name, "arguments": call.arguments, **self._place("call")}
            events = [{"type": "response.function_call_arguments.done", **told}]
        events.append(self._item_event("done", item))
        self.done.append(item)
        return events

    def _place(self, kind: str) -> dict[str, Any]:
        place: dict[str, Any] = {"output_index": len(self.done)}
        if kind in ("message", "reasoning"):
            item_id = self._message_id("msg" if kind == "message" else "rs")
            return {"item_id": item_id, **place, "content_index": 0}
        return {"item_id": _call_item_id(self._reader.calls[-1]), **place}

    def _message_id(self, prefix: str = "msg") -> str:
        return f"{prefix}_{self._request_id}" + (f"_{len(self.done)}" if self.done else "")

    def _reasoning_item(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self._message_id("rs"), "type": "reasoning", "summary": [], "content": content}

    def _message_item(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        fields = {"id": self._message_id(), "type": "message", "status": status}
        return {**fields, "role": "assistant", "content": content}

    def _item_event(self, what: str, item: dict[str, Any]) -> Event:
        return {"type": f"response.output_item.{what}", "output_index": len(self.done), "item": item}


def _call_item(call: Call, status: str) -> dict[str, Any]:
    fields = {"id": _call_item_id(call), "type": "function_call", "status": status, "call_id": call.id}
    return {**fields, "name": call.name, "arguments": call.arguments}


def _call_item_id(call: Call) -> str:
    return call.id.replace("call_", "fc_", 1)


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _reasoning_part(text: str) -> dict[str, Any]:
    return {"type": "reasoning_text", "text": text}


def _reasoned(item: dict[str, Any]) -> str:
    """The text of a reasoning item; that of other servers, which is encrypted, is left out."""
    parts = item.get("content")
    texts = [part.get("text") for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    return "\n".join(text for text in texts if isinstance(text, str))


def _message(item: dict[str, Any], where: str) -> Message:
    role, content = item.get("role"), item.get("content")
    if not isinstance(role, str):
        raise InvalidRequest(f"{where}.role: is missing; send user, system or assistant")
    return Message(_SAME_ROLE.get(role, role), _text(content, f"{where}.content"))


def _output(item: dict[str, Any], where: str) -> Message:
    call_id = item.get("call_id")
    if not isinstance(call_id, str):
        raise InvalidRequest(f"{where}.call_id: is missing; send the id of the call")
    return Message("tool", _text(item.get("output"), f"{where}.output"), {"tool_call_id": call_id})


def _text(content: Any, where: str) -> str:
    if content is not None and not isinstance(content, str | list):
        raise InvalidRequest(f"{where}: is no text; send a string, or parts of type input_text")
    return text_of(content, where)
