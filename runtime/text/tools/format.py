"""What a format of tool calls must know: how models write calls, how they are read, and how they are demanded."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moorage.runtime.text.tools.json_calls import JsonCallParser, Marks
from moorage.runtime.text.tools.parts import AnswerParser

_MOST_MORE = 31
"""Calls after the first one, where calls are demanded. Small models repeat one until their tokens are used up."""
_WHITESPACE = r"[\x20\x0A\x0D\x09]{1,20}"
"""Space between parts of JSON. Small models, given no limit, write line ends until their tokens are used up."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that an answer may be made to call."""

    name: str
    parameters: Mapping[str, Any]
    """The JSON schema of its arguments."""


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """One way in which models write calls."""

    name: str
    """The name that vLLM's `--tool-call-parser` has, where it has one."""
    marks: Marks
    in_template: tuple[str, ...]
    """Texts of which a chat template has one, if its model writes calls so."""
    before: str = ""
    """What stands before all calls, where they are demanded."""
    before_each: str = ""
    after_each: str = ""
    separator: str = "\n"
    after: str = ""
    arguments_key: str = "arguments"
    tokens: tuple[str, ...] = ()
    """Marks that are tokens of their own in most models. They are seen in a text although they may be special."""

    def parser(self, schemas: Mapping[str, Mapping[str, Any]]) -> AnswerParser:
        """A parser of one answer to a request that has these tools: by name the schema of the arguments."""
        return JsonCallParser(self.marks, schemas)

    def grammar(self, tools: Sequence[Tool], spelled: Callable[[str], str], *, several: bool) -> str:
        """A grammar, in Lark's syntax, of answers that only call some of `tools`; more than one with `several`.

        `spelled` says how a grammar has a token of `tokens`.
        """
        lines = self.frame(spelled, several=several)
        lines.append("body: " + " | ".join(f"tool_{place}" for place in range(len(tools))))
        for place, tool in enumerate(tools):
            begin = f'{{"name": {json.dumps(tool.name)}, "{self.arguments_key}": '
            lines.append(f'tool_{place}: {json.dumps(begin)} arguments_{place} "}}"')
            lines.append(f"arguments_{place}: %json {json.dumps(schema_of(tool.parameters))}")
        return "\n".join(lines)

    def frame(self, spelled: Callable[[str], str], *, several: bool) -> list[str]:
        """The rules of what stands round the `body` of calls."""
        rest = f" ({self.literal(self.separator, spelled)} call){{0,{_MOST_MORE}}}" if several else ""
        start = (self.literal(self.before, spelled), f"call{rest}", self.literal(self.after, spelled))
        each = (self.literal(self.before_each, spelled), "body", self.literal(self.after_each, spelled))
        return [f"start: {' '.join(filter(None, start))}", f"call: {' '.join(filter(None, each))}"]

    def literal(self, text: str, spelled: Callable[[str], str]) -> str:
        """A text in a grammar, whose tokens of `tokens` are named as tokens."""
        for token in self.tokens:
            before, found, after = text.partition(token)
            if found:
                parts = (self.literal(before, spelled), spelled(token), self.literal(after, spelled))
                return " ".join(filter(None, parts))
        return json.dumps(text) if text else ""


def schema_of(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of arguments, which always are an object."""
    guidance = {"whitespace_pattern": _WHITESPACE, "coerce_one_of": True}
    return {"type": "object", **parameters, "x-guidance": guidance}
