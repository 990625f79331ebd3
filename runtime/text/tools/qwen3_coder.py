"""Qwen3-Coder: `<function=NAME>` round `<parameter=KEY>` elements, between `<tool_call>` and `</tool_call>`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moorage.runtime.text.tools.format import Tool, ToolFormat
from moorage.runtime.text.tools.json_calls import Marks
from moorage.runtime.text.tools.parts import (
    AnswerParser,
    CallArguments,
    CallBegun,
    CallEnded,
    Part,
    Said,
    overlap,
)
from moorage.runtime.text.tools.strict_json import strict_json

_BEGIN, _END, _FUNCTION_END = "<tool_call>", "</tool_call>", "</function>"
_CALL = re.compile(
    r"\s*(?:<tool_call>)?\s*<function=([^>\n]+)>(.*)</function>\s*(?:</tool_call>)?\s*", re.DOTALL
)
_PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", re.DOTALL)


class XmlCallParser:
    """Splits one answer. It implements `AnswerParser`. A call is told once it is whole."""

    def __init__(self, schemas: Mapping[str, Mapping[str, Any]]) -> None:
        self._schemas = schemas
        self._held = ""
        self._num_calls = 0
        self._in_text = False
        """Whether text came since the begin, or since a call. Space alone is dropped beside a call."""

    def push(self, text: str) -> list[Part]:
        """See `AnswerParser`."""
        self._held += text
        parts: list[Part] = []
        while (end := self._held.find(_END)) >= 0:
            block, self._held = self._held[: end + len(_END)], self._held[end + len(_END) :]
            parts += self._block(block)
        begin = self._held.find(_BEGIN)
        if begin < 0:
            begin = len(self._held) - overlap(self._held, _BEGIN)
        shown = self._held[:begin]
        if shown.strip() or self._in_text:
            parts += self._said(shown)
            self._held = self._held[begin:]
        return parts

    def finish(self) -> list[Part]:
        """See `AnswerParser`."""
        held, self._held = self._held, ""
        dropped = held.isspace() and self._num_calls and not self._in_text
        return [] if dropped else self._block(held)

    def _block(self, block: str) -> list[Part]:
        """Text, and the call at its end if there is one."""
        before, mark, call = block.partition(_BEGIN)
        found = _CALL.fullmatch(mark + call)
        if found is None:
            return self._said(block)
        name, index = found.group(1), self._num_calls
        schema = self._schemas.get(name, {}).get("properties", {})
        values = {key: _value(text, schema.get(key)) for key, text in _PARAMETER.findall(found.group(2))}
        self._num_calls += 1
        said = self._said(before) if before.strip() or self._in_text else []
        self._in_text = False
        arguments = json.dumps(values, ensure_ascii=False)
        return [*said, CallBegun(index, name), CallArguments(index, arguments), CallEnded(index)]

    def _said(self, text: str) -> list[Part]:
        self._in_text = self._in_text or bool(text.strip())
        return [Said(text)] if text else []


@dataclass(frozen=True, slots=True)
class Qwen3CoderFormat(ToolFormat):
    """The format; its calls are no JSON."""

    def parser(self, schemas: Mapping[str, Mapping[str, Any]]) -> AnswerParser:
        """See `ToolFormat`."""
        return XmlCallParser(schemas)

    def grammar(self, tools: Sequence[Tool], spelled: Callable[[str], str], *, several: bool) -> str:
        """See `ToolFormat`."""
        lines = self.frame(spelled, several=several)
        lines.append("body: " + " | ".join(f"tool_{place}" for place in range(len(tools))))
        for place, tool in enumerate(tools):
            required, elements = tool.parameters.get("required", ()), []
            for number, (key, schema) in enumerate(tool.parameters.get("properties", {}).items()):
                rule = f"parameter_{place}_{number}"
                elements.append(rule if key in required else f"{rule}?")
                begin, end = json.dumps(f"<parameter={key}>\n"), json.dumps("\n</parameter>\n")
                lines.append(f"{rule}: {begin} {_grammar_of(schema)} {end}")
            begin = json.dumps(f"<function={tool.name}>\n")
            lines.append(f"tool_{place}: {begin} {' '.join(elements)} {json.dumps(_FUNCTION_END)}")
        return "\n".join(lines)


FORMAT = Qwen3CoderFormat(
    "qwen3_coder",
    Marks(),
    in_template=("<function=",),
    before_each=f"{_BEGIN}\n",
    after_each=f"\n{_END}",
    tokens=(_BEGIN, _END),
)


def _value(text: str, schema: Any) -> object:
    """A parameter as its schema says: a text if that may be one, and JSON in all other cases."""
    if not isinstance(schema, Mapping):
        schema = {}
    kind, allowed = schema.get("type"), schema.get("enum")
    if kind == "string" or (isinstance(kind, list) and "string" in kind):
        return text
    if isinstance(allowed, list) and text in allowed:
        return text
    value = strict_json(text)
    return text if value is None and text.strip() != "null" else value


def _grammar_of(schema: Any) -> str:
    texts = schema.get("enum") if isinstance(schema, Mapping) else None
    if isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts):
        return f"({' | '.join(json.dumps(text) for text in texts)})"
    if not isinstance(schema, Mapping) or not schema or schema.get("type") == "string":
        return "/[^<]*/"
    return f"%json {json.dumps(schema)}"
