"""Formats in which the name of a tool stands before the object of its arguments, and not in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from moorage.runtime.text.tools.format import Tool, ToolFormat, schema_of


@dataclass(frozen=True, slots=True)
class NamedCallFormat(ToolFormat):
    """Calls of the form name, `after_name`, arguments."""

    before_name: str = ""
    after_name: str = ""
    after_arguments: str = ""

    def grammar(self, tools: Sequence[Tool], spelled: Callable[[str], str], *, several: bool) -> str:
        """See `ToolFormat`."""
        lines = self.frame(spelled, several=several)
        lines.append("body: " + " | ".join(f"tool_{place}" for place in range(len(tools))))
        for place, tool in enumerate(tools):
            begin = self.literal(f"{self.before_name}{tool.name}{self.after_name}", spelled)
            end = self.literal(self.after_arguments, spelled)
            lines.append(f"tool_{place}: {begin} arguments_{place} {end}".rstrip())
            lines.append(f"arguments_{place}: %json {json.dumps(schema_of(tool.parameters))}")
        return "\n".join(lines)
