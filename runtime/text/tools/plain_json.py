"""Any other model: the answer is an object with a name and arguments, or a list of them."""

from __future__ import annotations

from moorage.runtime.text.tools.format import ToolFormat
from moorage.runtime.text.tools.json_calls import Marks

FORMAT = ToolFormat(
    "json",
    Marks(
        begins=("<tool_call>", "```json\n"),
        ends=("</tool_call>", "```"),
        bare=True,
        known_names=True,
        between=" \t\r\n;,[]",
    ),
    in_template=(),
    separator="\n",
)
