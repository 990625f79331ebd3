"""Reasoning between marks: apart from the answer, however the text is cut, begun by the prompt or the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from moorage.runtime.config.schema import ServerSection
from moorage.runtime.text.reasoning import FORMATS, ReasoningUse, TagParser, reasoning_use
from moorage.runtime.text.tokenizer import TextTokenizer
from moorage.runtime.text.tools.formats import FORMATS as TOOLS
from moorage.runtime.text.tools.parts import CallArguments, CallBegun, CallEnded, Part, Reasoned, Said
from tests import tokenizers

THINK = FORMATS["qwen3"]
CASES: dict[str, tuple[bool, str, str, str]] = {
    "the model begins it": (False, "<think>\nTwo.\n\nSo four.\n</think>\n\n4.\n", "Two.\n\nSo four.", "4.\n"),
    "the prompt has begun it": (True, "Two.\n</think>\n\n4.", "Two.", "4."),
    "none": (False, "Four < five, and <thin is no mark.", "", "Four < five, and <thin is no mark."),
    "a mark later": (False, "Write <think> first.", "", "Write <think> first."),
    "an empty one": (False, "<think>\n\n</think>\n\n4.", "", "4."),
    "no end": (False, "<think>Two, and </thin", "Two, and </thin", ""),
    "no end of one that the prompt began": (True, "Two. \n", "Two.", ""),
    "no word": (True, "", "", ""),
    "space alone": (False, " \n", "", " \n"),
}


def parts_of(parser: TagParser, answer: str, size: int) -> list[Part]:
    pieces = [answer[at : at + size] for at in range(0, len(answer), size)]
    return [part for piece in pieces for part in parser.push(piece)] + parser.finish()


def texts(parts: list[Part], kind: type[Reasoned] | type[Said]) -> str:
    return "".join(part.text for part in parts if isinstance(part, kind))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_reasoning_is_told_apart_however_the_answer_is_cut(case: tuple[bool, str, str, str]) -> None:
    opened, answer, thought, said = case
    for size in (max(1, len(answer)), 1, 2, 5):
        parts = parts_of(TagParser(THINK, None, opened=opened), answer, size)
        assert (texts(parts, Reasoned), texts(parts, Said)) == (thought, said)


def test_it_comes_while_the_model_writes_it() -> None:
    parser = TagParser(THINK, None, opened=False)
    assert parser.push("<think>\nTwo ") == [Reasoned("Two")]
    assert parser.reasons
    assert parser.push("and") == [Reasoned(" and")]
    assert parser.push("</thi") == []
    assert parser.push("nk>4") == [Said("4")]
    assert not parser.reasons


def test_calls_after_it_are_calls_and_calls_in_it_are_not() -> None:
    call = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    parser = TagParser(THINK, TOOLS["hermes"].parser({"now": {}}), opened=True)
    assert parts_of(parser, f"{call}</think>\n{call}", 1000) == [
        Reasoned(call),
        CallBegun(0, "now"),
        CallArguments(0, "{}"),
        CallEnded(0),
    ]


@pytest.mark.parametrize(
    ("prompt", "opened", "is_open"),
    [
        ("<|im_start|>assistant\n<think>\n", "<think>\n", True),
        ("<|im_start|>assistant\n<think>", "<think>", True),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", "<think>\n\n</think>\n\n", False),
        ("<|im_start|>assistant\n<think>a</think>\n\n", "", False),
        ("<think>\n<|im_end|>\n<|im_start|>assistant\n", "", False),
        ("<|im_start|>assistant\n", "", False),
    ],
)
def test_a_prompt_has_begun_it_only_with_its_very_end(
    tmp_path: Path, prompt: str, opened: str, is_open: bool
) -> None:
    for added in (tokenizers.PLAIN_ADDED, ()):
        tokenizer = TextTokenizer.load(tokenizers.save(tmp_path, "byte_level", added=added))
        ids = tokenizer.encode(prompt, add_special_tokens=False)
        found = ReasoningUse(THINK).opened_by(ids, tokenizer.spelling)
        assert tokenizer.decode(list(found.token_ids), skip_special_tokens=False) == opened
        assert found.is_open is is_open


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{{ '<think>' }}", "deepseek_r1"),
        ("{% if '</think>' in content %}{% endif %}", "deepseek_r1"),
        ("[THINK]{{ x }}[/THINK]", "mistral"),
        ("<|start|>assistant<|channel|>final<|message|>", "openai_gptoss"),
        ("{{ messages }}", None),
    ],
)
def test_the_template_tells_the_format(tmp_path: Path, template: str, name: str | None) -> None:
    files: dict[str, Any] = {"chat_template.jinja": template}
    tokenizer = TextTokenizer.load(tokenizers.save(tmp_path, "byte_level", files))
    use = reasoning_use(tokenizer)
    assert (None if use is None else use.format.name) == name
    assert reasoning_use(tokenizer, "none") is None
    named = reasoning_use(tokenizer, "qwen3")
    assert named is not None
    assert named.format is THINK


def test_special_marks_are_seen_in_the_text(tmp_path: Path) -> None:
    added = (tokenizers.AddedToken("[THINK]", special=True), "[/THINK]")
    tokenizer = TextTokenizer.load(tokenizers.save(tmp_path, "byte_level", added=added))
    use = reasoning_use(tokenizer, "mistral")
    assert use is not None
    assert use.special_ids == set(tokenizer.encode("[THINK]", add_special_tokens=False))


def test_every_format_may_be_named_in_a_cluster_file() -> None:
    named = get_args(ServerSection.model_fields["reasoning_parser"].annotation)
    assert set(named) == {"auto", "none", *FORMATS}
