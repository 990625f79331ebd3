"""Hermes and Qwen: each call is an object between `<tool_call>` and `</tool_call>`."""

from __future__ import annotations

from moorage.runtime.text.tools.format import ToolFormat
from moorage.runtime.text.tools.json_calls import Marks

FORMAT = ToolFormat(
    "hermes",
    Marks(begins=("<tool_call>",), ends=("</tool_call>",)),
    in_template=("<tool_call>",),
    before_each="<tool_call>\n",
    after_each="\n</tool_call>",
    tokens=("<tool_call>", "</tool_call>"),
)
