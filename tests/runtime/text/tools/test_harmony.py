"""Harmony: channels and calls, in texts of OpenAI's description of the format, however they are cut."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from moorage.runtime.text.tools.harmony import HarmonyParser
from moorage.runtime.text.tools.parts import CallBroken, Part, Reasoned
from tests.runtime.text.tools.test_formats import Call, read

HTML = '{"template": "basic_html", "path": "index.html"}'
PLAN = "**Action plan**:\n1. Generate an HTML file\n2. Generate a JavaScript for the Node.js server"
ANSWERS: dict[str, tuple[str, str, str, list[Call]]] = {
    "reasoning, then the answer": (
        "<|channel|>analysis<|message|>Simple arithmetic. Provide answer.<|end|>"
        "<|start|>assistant<|channel|>final<|message|>2 + 2 = 4.",
        "Simple arithmetic. Provide answer.",
        "2 + 2 = 4.",
        [],
    ),
    "the answer with its end": ("<|channel|>final<|message|>2 + 2 = 4.<|return|>", "", "2 + 2 = 4.", []),
    "a call": (
        "<|channel|>analysis<|message|>Need to use function get_current_weather.<|end|><|start|>assistant"
        "<|channel|>commentary to=functions.get_current_weather <|constrain|>json<|message|>"
        '{"location":"San Francisco"}<|call|>',
        "Need to use function get_current_weather.",
        "",
        [("get_current_weather", '{"location":"San Francisco"}')],
    ),
    "a call whose recipient stands before the channel": (
        " to=functions.get_current_weather<|channel|>commentary json<|message|>{}",
        "",
        "",
        [("get_current_weather", "{}")],
    ),
    "a preamble, then a call": (
        f"<|channel|>commentary<|message|>{PLAN}<|end|><|start|>assistant"
        f"<|channel|>commentary to=functions.generate_file <|constrain|>json<|message|>{HTML}",
        "",
        PLAN,
        [("generate_file", HTML)],
    ),
    "no channel": ("2 + 2 = 4, and <| is no mark.", "", "2 + 2 = 4, and <| is no mark.", []),
    "arguments that are no JSON": (
        "<|channel|>commentary to=functions.now <|constrain|>json<|message|>Paris",
        "",
        "Paris",
        [],
    ),
    "a header without its message": ("<|channel|>analysis<|message|>So<|end|><|start|>assist", "So", "", []),
}


def parts_of(answer: str, size: int, *, calls: bool = True) -> list[Part]:
    parser = HarmonyParser(calls=calls)
    pieces = [answer[at : at + size] for at in range(0, len(answer), size)]
    return [part for piece in pieces for part in parser.push(piece)] + parser.finish()


def reasoned(parts: Sequence[Part]) -> str:
    return "".join(part.text for part in parts if isinstance(part, Reasoned))


@pytest.mark.parametrize("case", ANSWERS.values(), ids=ANSWERS)
def test_channels_and_calls_are_told_however_the_answer_is_cut(
    case: tuple[str, str, str, list[Call]],
) -> None:
    answer, thought, said, calls = case
    for size in (len(answer), 1, 2, 7):
        parts = parts_of(answer, size)
        assert reasoned(parts) == thought
        assert read([part for part in parts if not isinstance(part, Reasoned)]) == (said, calls)


def test_a_call_that_the_answer_cuts_is_broken() -> None:
    answer = '<|channel|>commentary to=functions.now <|constrain|>json<|message|>{"city": "Par'
    parts = parts_of(answer, 5)
    assert parts[-1] == CallBroken(0, '{"city": "Par')


def test_without_tools_a_call_is_text() -> None:
    answer = "<|channel|>commentary to=functions.now <|constrain|>json<|message|>{}"
    assert read(parts_of(answer, 5, calls=False)) == ("{}", [])


def test_it_knows_when_what_comes_next_is_reasoning() -> None:
    parser = HarmonyParser()
    assert parser.reasons
    parser.push("<|channel|>analysis<|message|>So")
    assert parser.reasons
    parser.push("<|end|><|start|>assistant<|channel|>final<|message|>4")
    assert not parser.reasons
