"""Demanded calls: whatever is drawn under the grammar of a format, its parser reads calls that match the schemas."""

from __future__ import annotations

import json

import pytest

from moorage.runtime.text.grammar import Grammar, Grammars
from moorage.runtime.text.tokenizer import TextTokenizer
from moorage.runtime.text.tools.format import Tool
from moorage.runtime.text.tools.formats import FORMATS, tool_use
from tests import tokenizers
from tests.runtime.text.test_grammar import END, drawn
from tests.runtime.text.tools.test_formats import read

TOOLS = (
    Tool("weather", {"properties": {"city": {"enum": ["Paris", 'Rom"e']}}, "required": ["city"]}),
    Tool('odd "name"', {"properties": {"n": {"enum": [1, 22]}}, "additionalProperties": False}),
)
ARGUMENTS = {
    "weather": [{"city": "Paris"}, {"city": 'Rom"e'}],
    'odd "name"': [{}, {"n": 1}, {"n": 22}],
}
CLOSED = tuple(Tool(tool.name, {**tool.parameters, "additionalProperties": False}) for tool in TOOLS)


@pytest.fixture(scope="module", params=[False, True], ids=["plain marks", "special marks"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    marks = sorted({mark for each in FORMATS.values() for mark in each.tokens})
    added = tuple(tokenizers.AddedToken(mark, special=request.param) for mark in marks)
    return TextTokenizer.load(tokenizers.save(tmp_path_factory.mktemp("marks"), "byte_level", added=added))


@pytest.fixture(scope="module")
def grammars(tokenizer: TextTokenizer) -> Grammars:
    return Grammars(tokenizer, tokenizer.vocab_size, [END])


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("several", [False, True])
def test_only_calls_that_match_their_schema_can_be_said(
    tokenizer: TextTokenizer, grammars: Grammars, name: str, several: bool
) -> None:
    use = tool_use(tokenizer, name)
    assert use is not None
    text = use.format.grammar(CLOSED, use.spelled, several=several)
    called = set()
    for seed in range(6):
        said = drawn(grammars.compile(Grammar("lark", text)), _Seeing(tokenizer), seed, most=5000)
        parser = use.format.parser({tool.name: tool.parameters for tool in TOOLS})
        rest, calls = read(parser.push(said) + parser.finish())
        assert rest == ""
        assert len(calls) >= 1 if several else len(calls) == 1
        assert all(json.loads(arguments) in ARGUMENTS[tool] for tool, arguments in calls)
        called |= {tool for tool, _ in calls}
    assert called == set(ARGUMENTS)


def test_one_named_tool_is_the_only_one(tokenizer: TextTokenizer, grammars: Grammars) -> None:
    use = tool_use(tokenizer, "hermes")
    assert use is not None
    text = use.format.grammar(CLOSED[1:], use.spelled, several=False)
    said = drawn(grammars.compile(Grammar("lark", text)), _Seeing(tokenizer), 1)
    assert said.startswith('<tool_call>\n{"name": "odd \\"name\\"", "arguments": {')
    assert said.endswith("\n</tool_call>")


class _Seeing:
    """Decodes with special tokens, as answers are that may call tools."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer

    def decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=False)
