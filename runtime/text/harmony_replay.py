"""Where tokens that a model generated go in a prompt in Harmony, whose template writes a header before each message.

An answer that called a tool is several messages, and its tokens begin within the header of the first. So the template
gets the call with a mark as its arguments, and what it writes round the mark, back to the header, gives way to it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

_CHANNEL = "<|channel|>"


def is_harmony(template: str) -> bool:
    """Whether a chat template, given by its source, writes channels."""
    return _CHANNEL in template


def marked(message: Mapping[str, Any], mark: str) -> dict[str, Any]:
    """The message with a mark in place of the arguments of its call, and with nothing else."""
    (first, *_) = message["tool_calls"]
    call = {**first, "function": {**first["function"], "arguments": mark}}
    return {"role": message["role"], "content": "", "tool_calls": [call]}


def freed(text: str, marks: Collection[str]) -> str:
    """A rendered text, in which each mark follows `<|start|>assistant` at once."""
    for mark in marks:
        text = re.sub(
            rf'(<\|start\|>assistant)[^<]*<\|channel\|>[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>"?{mark}"?',
            rf"\g<1>{mark}",
            text,
        )
    return text
