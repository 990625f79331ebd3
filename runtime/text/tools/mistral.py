"""Mistral: `[TOOL_CALLS]` before a list of objects; newer models write the name of a tool, then its arguments."""

from __future__ import annotations

from moorage.runtime.text.tools.format import ToolFormat
from moorage.runtime.text.tools.json_calls import Marks

FORMAT = ToolFormat(
    "mistral",
    Marks(begins=("[TOOL_CALLS]",), name_first=True, between=" \t\r\n,[]"),
    in_template=("[TOOL_CALLS]",),
    before="[TOOL_CALLS] [",
    separator=", ",
    after="]",
    tokens=("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"),
)
