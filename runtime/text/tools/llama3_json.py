"""Llama 3: the answer is an object with `parameters`, at times after `<|python_tag|>`; more follow after `;`."""

from __future__ import annotations

from moorage.runtime.text.tools.format import ToolFormat
from moorage.runtime.text.tools.json_calls import Marks

FORMAT = ToolFormat(
    "llama3_json",
    Marks(begins=("<|python_tag|>",), bare=True, between=" \t\r\n;,[]"),
    in_template=("<|python_tag|>", "ipython"),
    separator="; ",
    arguments_key="parameters",
    tokens=("<|python_tag|>",),
)
