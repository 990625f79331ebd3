"""Calls in answers: each format, however the text is cut, and what stays text because it is no call."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest

from moorage.runtime.config.schema import ServerSection
from moorage.runtime.text.tokenizer import TextTokenizer
from moorage.runtime.text.tools.formats import FORMATS, tool_use
from moorage.runtime.text.tools.parts import CallArguments, CallBegun, CallBroken, CallEnded, Part, Said
from tests import tokenizers

CITY = {"properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
NAMES: dict[str, dict[str, Any]] = {"weather": CITY, "now": {}}
PARIS = '{"city": "Paris {\\"}\\" é"}'
ONE = f'{{"name": "weather", "arguments": {PARIS}}}'
NONE = '{"name": "now", "arguments": {}}'
LLAMA = f'{{"name": "weather", "parameters": {PARIS}}}'

Call = tuple[str, str]


def parsed(name: str, pieces: Sequence[str]) -> list[Part]:
    parser = FORMATS[name].parser(NAMES)
    return [part for piece in pieces for part in parser.push(piece)] + parser.finish()


def read(parts: Sequence[Part]) -> tuple[str, list[Call]]:
    """The text of an answer without its calls, and the whole calls."""
    said, begun, arguments, calls = "", dict[int, str](), dict[int, str](), list[Call]()
    for part in parts:
        match part:
            case Said():
                said += part.text
            case CallBegun():
                assert part.index == len(begun)
                begun[part.index] = part.name
            case CallArguments():
                arguments[part.index] = arguments.get(part.index, "") + part.text
            case CallEnded():
                calls.append((begun[part.index], arguments[part.index]))
            case CallBroken():
                said += part.text
    return said, calls


CALLS: dict[str, tuple[str, str, str, list[Call]]] = {
    "hermes": ("hermes", f"<tool_call>\n{ONE}\n</tool_call>", "", [("weather", PARIS)]),
    "hermes after text": (
        "hermes",
        f"I look.\n<tool_call>{ONE}</tool_call>",
        "I look.\n",
        [("weather", PARIS)],
    ),
    "hermes twice": (
        "hermes",
        f"\n<tool_call>\n{ONE}\n</tool_call>\n<tool_call>\n{NONE}\n</tool_call>\n",
        "",
        [("weather", PARIS), ("now", "{}")],
    ),
    "hermes between texts": (
        "hermes",
        f"a<tool_call>{ONE}</tool_call>\nb<tool_call>{NONE}</tool_call> c",
        "a\nb c",
        [("weather", PARIS), ("now", "{}")],
    ),
    "hermes without its end": ("hermes", f"<tool_call>\n{ONE}", "", [("weather", PARIS)]),
    "hermes of an unknown tool": ("hermes", '<tool_call>{"name": "x"}</tool_call>', "", [("x", "{}")]),
    "arguments first": (
        "hermes",
        f'<tool_call>{{"arguments": {PARIS}, "name": "now"}}',
        "",
        [("now", PARIS)],
    ),
    "arguments as a string": (
        "hermes",
        f'<tool_call>{{"name": "now", "arguments": {json.dumps(PARIS)}}}</tool_call>',
        "",
        [("now", PARIS)],
    ),
    "no arguments": (
        "hermes",
        '<tool_call>{"name": "now", "arguments": null}</tool_call>',
        "",
        [("now", "{}")],
    ),
    "other keys": (
        "hermes",
        '<tool_call>{"id": 7 , "type":"function","name":"now","arguments":{"a":[1,{"b":"}"}]}}</tool_call>',
        "",
        [("now", '{"a":[1,{"b":"}"}]}')],
    ),
    "llama": ("llama3_json", LLAMA, "", [("weather", PARIS)]),
    "llama after its tag": ("llama3_json", f"<|python_tag|>{LLAMA}", "", [("weather", PARIS)]),
    "llama twice": (
        "llama3_json",
        f'{LLAMA}; {{"name": "now", "parameters": {{}}}}',
        "",
        [("weather", PARIS), ("now", "{}")],
    ),
    "mistral": ("mistral", f"[TOOL_CALLS] [{ONE}, {NONE}]", "", [("weather", PARIS), ("now", "{}")]),
    "mistral with ids": (
        "mistral",
        f'[TOOL_CALLS][{{"name": "weather", "arguments": {PARIS}, "id": "abcdefghi"}}]',
        "",
        [("weather", PARIS)],
    ),
    "mistral by name": (
        "mistral",
        f"Well. [TOOL_CALLS]weather{PARIS}[TOOL_CALLS]now[CALL_ID]abc[ARGS]{{}}",
        "Well. ",
        [("weather", PARIS), ("now", "{}")],
    ),
    "qwen3 coder": (
        "qwen3_coder",
        "I look.\n\n<tool_call>\n<function=weather>\n<parameter=city>\n7 <b>\nline\n</parameter>\n<parameter=days>\n"
        "3\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=now>\n</function>\n</tool_call>\n",
        "I look.\n\n",
        [("weather", '{"city": "7 <b>\\nline", "days": 3}'), ("now", "{}")],
    ),
    "deepseek v3": (
        "deepseek_v3",
        "I look.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n"
        f"{PARIS}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{{}}\n```"
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "I look.",
        [("weather", PARIS), ("now", "{}")],
    ),
    "deepseek v3.1": (
        "deepseek_v31",
        f"I look.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{PARIS}<｜tool▁call▁end｜>"
        "<｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "I look.",
        [("weather", PARIS), ("now", "{}")],
    ),
    "deepseek without the marks of all calls": (
        "deepseek_v31",
        f"<｜tool▁call▁begin｜>weather<｜tool▁sep｜>{PARIS}<｜tool▁call▁end｜>",
        "",
        [("weather", PARIS)],
    ),
    "deepseek, then text": (
        "deepseek_v31",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>Done.",
        "Done.",
        [("now", "{}")],
    ),
    "json": ("json", f"\n{ONE}", "", [("weather", PARIS)]),
    "json in a list": ("json", f"[{ONE}, {NONE}]\n", "", [("weather", PARIS), ("now", "{}")]),
    "json in a fence": ("json", f"So:\n```json\n{ONE}\n```\nDone.", "So:\n\nDone.", [("weather", PARIS)]),
}
TEXTS = {
    "an answer": ("hermes", "Two < three, and <tool_cal is no tag."),
    "only space": ("hermes", " \n "),
    "a tag alone": ("hermes", "Write <tool_call> first."),
    "an empty tag": ("hermes", "<tool_call>\n</tool_call>"),
    "no JSON": ("hermes", '<tool_call>\n{"name": weather}\n</tool_call>'),
    "no name": ("hermes", '<tool_call>{"arguments": {}}</tool_call>'),
    "arguments that are a list": ("hermes", '<tool_call>{"name": "now", "arguments": [1]}</tool_call>'),
    "the end within a call": ("hermes", '<tool_call>\n{"name": "weather", "arguments": {"city": "Par'),
    "the end within a mark": ("hermes", "a <tool_c"),
    "arguments that are no JSON": ("hermes", '<tool_call>{"name": "now", "arguments": {a}}</tool_call> b'),
    "a number that is none": ("hermes", '<tool_call>{"name": "now", "arguments": {"a": NaN}}</tool_call>'),
    "half a character": ("hermes", '<tool_call>{"name": "now", "arguments": {"a": "\\ud800"}}</tool_call>'),
    "half a character in a name": ("hermes", '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>'),
    "JSON": ("llama3_json", '{"answer": 7, "name": "weather"}'),
    "JSON of another name": ("llama3_json", '{"name": "Ada", "parameters": {}}'),
    "JSON later": ("llama3_json", f"Here: {LLAMA}"),
    "a list": ("json", "[1, 2, 3]"),
    "a fence": ("json", '```json\n{"name": "Ada", "arguments": {}}\n```'),
    "no function": ("qwen3_coder", "a <tool_call>weather</tool_call> b"),
    "the end within a function": ("qwen3_coder", "<tool_call>\n<function=weather>\n<parameter=city>\nPar"),
    "a name alone": ("mistral", "[TOOL_CALLS]weather and so on" + " more" * 100),
    "marks of all calls without one": ("deepseek_v31", "a<｜tool▁calls▁begin｜><｜tool▁calls▁end｜>b"),
    "the end within a DeepSeek call": (
        "deepseek_v3",
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{"city": ',
    ),
}


@pytest.mark.parametrize("case", CALLS.values(), ids=CALLS)
def test_calls_are_told_however_the_answer_is_cut(case: tuple[str, str, str, list[Call]]) -> None:
    name, answer, said, calls = case
    for size in (len(answer), 1, 2, 7):
        pieces = [answer[at : at + size] for at in range(0, len(answer), size)]
        assert read(parsed(name, pieces)) == (said, calls)


@pytest.mark.parametrize("case", TEXTS.values(), ids=TEXTS)
def test_what_is_no_call_stays_text(case: tuple[str, str]) -> None:
    name, answer = case
    for size in (len(answer), 1, 3):
        pieces = [answer[at : at + size] for at in range(0, len(answer), size)]
        assert read(parsed(name, pieces)) == (answer, [])


def test_arguments_come_while_the_model_writes_them() -> None:
    parser = FORMATS["hermes"].parser(NAMES)
    assert parser.push('Hm.<tool_call>\n{"name": "weather", ') == [Said("Hm.")]
    assert parser.push('"arguments": {"ci') == [CallBegun(0, "weather"), CallArguments(0, '{"ci')]
    assert parser.push('ty": 1}') == [CallArguments(0, 'ty": 1}')]
    assert parser.push("}") == [CallEnded(0)]


def test_text_is_passed_on_at_once() -> None:
    parser = FORMATS["hermes"].parser(NAMES)
    assert parser.push("A < B") == [Said("A < B")]
    assert parser.push(" <to") == [Said(" ")]
    assert parser.push("ns>") == [Said("<tons>")]


def test_every_format_may_be_named_in_a_cluster_file() -> None:
    named = get_args(ServerSection.model_fields["tool_parser"].annotation)
    assert set(named) == {"auto", *FORMATS}


TEMPLATES = {
    "hermes": "{% if tools %}{{ tools | tojson }} answer as <tool_call>{% endif %}",
    "llama3_json": "{% if tools %}{{ tools }}<|start_header_id|>ipython{% endif %}",
    "mistral": "{% if tools %}[AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS]",
    "qwen3_coder": "{% if tools %}<tool_call><function=name>{% endif %}",
    "json": "{% for tool in tools %}{{ tool }}{% endfor %}",
    "deepseek_v3": "{{ tools }}{{ '<｜tool▁call▁begin｜>' + tool['type'] + '<｜tool▁sep｜>' + name }}",
    "deepseek_v31": "{{ tools }}{{ '<｜tool▁call▁begin｜>' + name + '<｜tool▁sep｜>' + arguments }}",
    "openai": "{{ tools }}<|start|>assistant<|channel|>final<|message|>",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_template_tells_the_format(tmp_path: Path, name: str) -> None:
    files: dict[str, Any] = {"chat_template.jinja": TEMPLATES[name]}
    use = tool_use(TextTokenizer.load(tokenizers.save(tmp_path, "byte_level", files)))
    assert use is not None
    assert use.format is FORMATS[name]


def test_a_template_without_tools_has_none_unless_a_format_is_named(tmp_path: Path) -> None:
    files = {"chat_template.jinja": "{{ messages[0].content }}"}
    tokenizer = TextTokenizer.load(tokenizers.save(tmp_path, "byte_level", files))
    assert tool_use(tokenizer) is None
    named = tool_use(tokenizer, "hermes")
    assert named is not None
    assert named.format.name == "hermes"


def test_marks_that_are_tokens_are_known_by_their_ids(tmp_path: Path) -> None:
    files = {"chat_template.jinja": "{{ tools }}[TOOL_CALLS]"}
    added = (tokenizers.AddedToken("[TOOL_CALLS]", special=True), "[CALL_ID]")
    tokenizer = TextTokenizer.load(tokenizers.save(tmp_path, "byte_level", files, added))
    use = tool_use(tokenizer)
    assert use is not None
    special, plain = tokenizer.encode("[TOOL_CALLS][CALL_ID]", add_special_tokens=False)
    assert use.token_ids == {"[TOOL_CALLS]": special, "[CALL_ID]": plain}
    assert use.special_ids == {special}
    assert (use.spelled("[CALL_ID]"), use.spelled("[ARGS]")) == (f"<[{plain}]>", '"[ARGS]"')
