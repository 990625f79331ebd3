"""Reasoning in requests: whether a model shall reason, and what it reasoned in earlier answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from moorage.runtime.api.engine import Engine
from moorage.runtime.api.http.prompts import Message
from moorage.runtime.api.http.tools.asked import MOST_DEPTH, depth
from moorage.runtime.text.tools.strict_json import is_strict
from moorage.workers.errors import InvalidRequest

MOST_VALUES = 64
_OWN = frozenset(
    ("messages", "tools", "documents", "add_generation_prompt", "said", "parse_special", "ascii_as_it_is")
)
"""Values that the server itself gives to chat templates."""
_SWITCHES = ("enable_thinking", "thinking")
"""Names under which templates ask whether to reason: Qwen3 and others, DeepSeek V3.1 and Granite."""
_NAMES = ("reasoning_content", "reasoning", "thinking")
"""Names under which templates have the reasoning of a message; the last one is that of gpt-oss."""


def template_values(
    engine: Engine, sent: Mapping[str, Any] | None, *, effort: object = None, reasons: bool | None = None
) -> dict[str, Any]:
    """The values that a chat template gets for `chat_template_kwargs`, and for how much the model shall reason.

    `effort` is OpenAI's, of which none switches reasoning off; `reasons` None leaves that to the template. Both are
    for models that reason. What stands in `sent` goes before. Raises InvalidRequest with the field that is wrong.
    """
    values: dict[str, Any] = {}
    if effort is not None:
        if not isinstance(effort, str) or not effort.isascii() or not effort.isalpha():
            raise InvalidRequest("reasoning_effort: must be none, minimal, low, medium, high or xhigh")
        if effort == "none":
            reasons = False
        else:
            values["reasoning_effort"] = effort
    if reasons is not None:
        values |= dict.fromkeys(_SWITCHES, reasons)
    if engine.text.reasoning is None:
        values = {}
    for name, value in (sent or {}).items():
        where = f"chat_template_kwargs.{name[:40]}"
        if not name.isidentifier() or name.startswith(("_", "moorage")):
            raise InvalidRequest(f"{where}: is no name of a value; use letters, digits and _")
        if name in _OWN:
            raise InvalidRequest(f"{where}: is given by the server; leave it out")
        if depth(value) > MOST_DEPTH or not is_strict(value):
            raise InvalidRequest(f"{where}: must be JSON that is nested at most {MOST_DEPTH} deep")
        values[name] = value
    if len(values) > MOST_VALUES:
        raise InvalidRequest(f"chat_template_kwargs: has more than {MOST_VALUES} values; send fewer")
    return values


def reasoning_fields(text: object, *, beside_text: bool = False) -> dict[str, Any]:
    """Fields of a message for what the model reasoned before it, under the names that templates have for that.

    `beside_text` says that the message has both text and calls. The template of gpt-oss then takes no `thinking`.
    """
    if not isinstance(text, str) or not text:
        return {}
    return dict.fromkeys(_NAMES[:-1] if beside_text else _NAMES, text)


def without_reasoning(messages: Sequence[Message]) -> list[Message]:
    """The same without these fields, for a model that does not reason."""
    return [
        replace(one, fields={name: value for name, value in one.fields.items() if name not in _NAMES})
        for one in messages
    ]
