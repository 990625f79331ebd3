"""What a conversation has beside roles and texts: tools, calls of them, answers whose tokens are known, values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class ChatExtra:
    """All of it is JSON. Places of messages count from 0."""

    tools: Sequence[Mapping[str, Any]] = ()
    """The tools as clients of OpenAI send them: a type, and a function with name, description and parameters."""
    fields: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    """The other fields of a message by its place, such as `tool_calls` or `tool_call_id`."""
    said: Mapping[int, Sequence[int]] = field(default_factory=dict)
    """The tokens that the model generated for an answer, by its place. They stand for its content and calls."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """Other values for the template, by name, such as `enable_thinking`."""

    def as_json(self) -> dict[str, Any]:
        """A value that JSON can hold."""
        return {"tools": self.tools, "fields": self.fields, "said": self.said, "values": self.values}

    @classmethod
    def of_json(cls, value: Mapping[str, Any]) -> Self:
        """The same from its JSON, whose keys are texts."""
        fields, said = (
            {int(place): found for place, found in value[name].items()} for name in ("fields", "said")
        )
        return cls(value["tools"], fields, said, value["values"])
