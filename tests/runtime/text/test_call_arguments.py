"""Templates get the arguments of calls as an object, and as JSON where they add them to a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moorage.runtime.text.tokenizer import TextTokenizer
from tests import tokenizers

CALL: dict[str, Any] = {"type": "function", "function": {"name": "now", "arguments": {"zone": "é", "n": 1}}}
ASKED: list[dict[str, Any]] = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
]
DEEPSEEK = "{{ '<｜tool▁sep｜>' + f.arguments + '<｜tool▁call▁end｜>' }}"
JSON = '{"zone": "é", "n": 1}'


@pytest.mark.parametrize(
    ("written", "text"),
    [
        (DEEPSEEK, f"<｜tool▁sep｜>{JSON}<｜tool▁call▁end｜>"),
        ("{{ f.arguments | tojson }}", JSON),
        ("{% if f.arguments is string %}no{% else %}{{ f.arguments.zone }}{% endif %}", "é"),
        ("{% for key, value in f.arguments | items %}{{ key }}={{ value }};{% endfor %}", "zone=é;n=1;"),
    ],
)
def test_both_ways_of_templates(tmp_path: Path, written: str, text: str) -> None:
    begin = "{% for m in messages if m.tool_calls %}{% set f = m.tool_calls[0].function %}"
    files = {"chat_template.jinja": begin + written + "{% endfor %}"}
    tokenizer = TextTokenizer.load(tokenizers.save(tmp_path, "byte_level", files))
    assert tokenizer.render_chat(ASKED) == text
    assert CALL["function"]["arguments"] == {"zone": "é", "n": 1}
    assert tokenizer.decode(tokenizer.encode_chat(ASKED), skip_special_tokens=False) == text
