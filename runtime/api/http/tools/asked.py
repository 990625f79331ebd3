"""Tools and the choice of them as clients send them, for all APIs in one form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moorage.runtime.text.tools.format import Tool
from moorage.runtime.text.tools.strict_json import is_strict
from moorage.workers.errors import InvalidRequest

MOST_TOOLS = 1024
MOST_NAME_CHARACTERS = 128
MOST_DEPTH = 64
"""Objects and lists within each other."""
_CHOICES = ("auto", "none", "required")


@dataclass(frozen=True, slots=True)
class ToolsAsked:
    """The tools of one request, and which of them the answer may or must call."""

    tools: Sequence[Mapping[str, Any]] = ()
    """The tools as a chat template gets them: a type, and a function with name, description and parameters."""
    choice: str = "auto"
    """auto, none or required."""
    only: str | None = None
    """The name of the one tool that must be called, where a call is required."""
    several: bool = True
    """Whether one answer may have several calls."""

    def demanded(self) -> list[Tool]:
        """The tools of which the answer must call one; none where it may also be text."""
        if self.choice != "required":
            return []
        functions = [tool["function"] for tool in self.tools]
        return [
            Tool(function["name"], function.get("parameters") or {})
            for function in functions
            if self.only in (None, function["name"])
        ]


def openai_tools(
    tools: Sequence[Mapping[str, Any]] | None, choice: str | Mapping[str, Any] | None, several: bool | None
) -> ToolsAsked:
    """Tools of OpenAI's routes: `{"type": "function", "function": {…}}`, or without the inner object in Responses.

    Tools of other types run at OpenAI. They are left out, since Codex sends some with every request.
    """
    functions = []
    for place, tool in enumerate(tools or ()):
        if tool.get("type", "function") == "function":
            inner = tool.get("function", tool if "name" in tool else None)
            functions.append((f"tools[{place}].function", inner, "parameters"))
    name = None
    if isinstance(choice, Mapping):
        inner = choice.get("function", choice)
        name = inner.get("name") if isinstance(inner, Mapping) else None
        if choice.get("type") != "function" or not isinstance(name, str):
            raise InvalidRequest(
                'tool_choice: must be auto, none, required or {"type": "function", …} with a name'
            )
        choice = "required"
    return _checked(functions, choice or "auto", name, several is not False)


def anthropic_tools(
    tools: Sequence[Mapping[str, Any]] | None, choice: Mapping[str, Any] | None
) -> ToolsAsked:
    """Tools of Anthropic's routes, `{"name": …, "input_schema": …}`. Those of a type of its own are left out."""
    functions = [
        (f"tools[{place}]", tool, "input_schema")
        for place, tool in enumerate(tools or ())
        if tool.get("type", "custom") == "custom"
    ]
    choice = choice or {}
    kind, name = choice.get("type", "auto"), choice.get("name")
    if kind == "tool" and not isinstance(name, str):
        raise InvalidRequest("tool_choice.name: is missing; name one of the tools")
    as_openai = {"any": "required", "tool": "required"}.get(kind, kind)
    several = not choice.get("disable_parallel_tool_use")
    return _checked(functions, as_openai, name if kind == "tool" else None, several)


def depth(value: Any) -> int:
    """How deep objects and lists lie within each other, counted up to just above `MOST_DEPTH`."""
    level, found = [value], 0
    while level and found <= MOST_DEPTH:
        containers = [one for one in level if isinstance(one, dict | list)]
        found += bool(containers)
        level = [inner for one in containers for inner in (one.values() if isinstance(one, dict) else one)]
    return found


def _checked(
    functions: Iterable[tuple[str, Any, str]], choice: Any, only: str | None, several: bool
) -> ToolsAsked:
    read = [_template_form(where, function, schema_key) for where, function, schema_key in functions]
    if len(read) > MOST_TOOLS:
        raise InvalidRequest(f"tools: {len(read)} tools are too many; send at most {MOST_TOOLS}")
    if choice not in _CHOICES:
        raise InvalidRequest(
            f"tool_choice: {str(choice)[:40]!r} is unknown; use auto, none or required, or name a tool"
        )
    if choice == "required" and not read:
        raise InvalidRequest("tool_choice: demands a call, but the request has no tools; send some")
    if only is not None and all(tool["function"]["name"] != only for tool in read):
        raise InvalidRequest(f"tool_choice: {only[:40]!r} is none of the tools; name one of them")
    return ToolsAsked(read, choice, only, several)


def _template_form(where: str, function: Any, schema_key: str) -> dict[str, Any]:
    """One tool as chat templates get it. Raises InvalidRequest with the field that is wrong."""
    if not isinstance(function, Mapping):
        raise InvalidRequest(f"{where}: is missing; send an object with name, description and {schema_key}")
    name, description, schema = (function.get(key) for key in ("name", "description", schema_key))
    if not isinstance(name, str) or not 1 <= len(name) <= MOST_NAME_CHARACTERS or not name.isprintable():
        raise InvalidRequest(f"{where}.name: must be 1 to {MOST_NAME_CHARACTERS} printable characters")
    if description is not None and not isinstance(description, str):
        raise InvalidRequest(f"{where}.description: must be a string")
    if schema is not None and not isinstance(schema, dict):
        raise InvalidRequest(f"{where}.{schema_key}: must be a JSON schema, an object")
    if depth(schema) > MOST_DEPTH:
        raise InvalidRequest(
            f"{where}.{schema_key}: is nested more than {MOST_DEPTH} deep; send a flatter one"
        )
    if not is_strict(schema):
        raise InvalidRequest(f"{where}.{schema_key}: has a number that is not finite; send a JSON schema")
    read: dict[str, Any] = {"name": name}
    if description is not None:
        read["description"] = description
    read["parameters"] = schema if schema is not None else {"type": "object", "properties": {}}
    return {"type": "function", "function": read}
