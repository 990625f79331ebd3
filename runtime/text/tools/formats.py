"""All formats of tool calls, and which of them a model has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from moorage.runtime.text.tokenizer import TextTokenizer
from moorage.runtime.text.tools import (
    deepseek,
    harmony,
    hermes,
    llama3_json,
    mistral,
    plain_json,
    qwen3_coder,
)
from moorage.runtime.text.tools.format import ToolFormat

FORMATS: Mapping[str, ToolFormat] = {
    each.name: each
    for each in (
        harmony.FORMAT,
        deepseek.V3,
        deepseek.V31,
        qwen3_coder.FORMAT,
        mistral.FORMAT,
        hermes.FORMAT,
        llama3_json.FORMAT,
        plain_json.FORMAT,
    )
}
"""The formats by name; of those that fit a template the first one counts."""
AUTO = "auto"


@dataclass(frozen=True, slots=True)
class ToolUse:
    """How one model calls tools."""

    format: ToolFormat
    token_ids: Mapping[str, int] = field(default_factory=dict)
    """Marks of the format that are tokens of the model's own."""
    special_ids: frozenset[int] = frozenset()
    """The ids that are special tokens, and so must be asked for to be seen in a text."""

    def spelled(self, token: str) -> str:
        """A mark of the format as a grammar has it: by its id if it is a token, and by its text if not.

        llguidance takes tokens such as `<tool_call>` for special ones, which no text in a grammar matches.
        """
        token_id = self.token_ids.get(token)
        return f'"{token}"' if token_id is None else f"<[{token_id}]>"


def tool_use(tokenizer: TextTokenizer, name: str = AUTO) -> ToolUse | None:
    """How a model calls tools: in the format of this name, or as its template says; None where that has no tools."""
    template = tokenizer.tool_template
    if name == AUTO:
        if template is None:
            return None
        fitting = (each for each in FORMATS.values() if any(text in template for text in each.in_template))
        found = next(fitting, plain_json.FORMAT)
    else:
        found = FORMATS[name]
    ids = tokenizer.added_ids_of(found.tokens)
    return ToolUse(found, ids, tokenizer.special_ids.intersection(ids.values()))
