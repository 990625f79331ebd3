"""Answers that follow a grammar: drawn at random, they match it; no grammar takes long, whatever it says."""

from __future__ import annotations

import json
import random
import re
import time
from pathlib import Path
from typing import Any

import pytest

from moorage.runtime.text.grammar import MAX_BYTES, Grammar, Grammars, Guide
from moorage.runtime.text.tokenizer import TextTokenizer
from moorage.workers.errors import InvalidRequest
from tests.tokenizers import KINDS, save

END = 2
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def schema(value: Any) -> Grammar:
    return Grammar("json_schema", json.dumps(value))


def drawn(guide: Guide, tokenizer: TextTokenizer, seed: int, most: int = 400) -> str:
    """Text of tokens drawn from those that are allowed, the end as soon as it may come."""
    draw, found = random.Random(seed), []
    while not guide.ended and len(found) < most:
        assert guide.allowed is not None
        mask = int.from_bytes(guide.allowed, "little")
        allowed = [token for token in range(mask.bit_length()) if mask >> token & 1]
        token = END if END in allowed else draw.choice(allowed)
        guide.accept(token)
        assert guide.failure is None
        if token != END:
            found.append(token)
    return tokenizer.decode(found)


@pytest.fixture(scope="module", params=sorted(KINDS.keys() - {"unigram"}))
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    return TextTokenizer.load(save(tmp_path_factory.mktemp(request.param), request.param))


@pytest.fixture(scope="module")
def grammars(tokenizer: TextTokenizer) -> Grammars:
    return Grammars(tokenizer, tokenizer.vocab_size + 5, [END])


@pytest.mark.parametrize("seed", range(5))
def test_a_regular_expression_is_matched_as_a_whole(
    grammars: Grammars, tokenizer: TextTokenizer, seed: int
) -> None:
    text = drawn(grammars.compile(Grammar("regex", "(yes|no|[0-9]{3}-[a-z]{2})")), tokenizer, seed)
    assert re.fullmatch("(yes|no|[0-9]{3}-[a-z]{2})", text.strip())


@pytest.mark.parametrize("seed", range(5))
def test_json_is_that_of_its_schema(grammars: Grammars, tokenizer: TextTokenizer, seed: int) -> None:
    # A number may go on for ever, so it is kept short.
    short = {**PERSON, "properties": {"name": {"enum": ["Ann", "Bo"]}, "age": {"enum": [4, 71]}}}
    value = json.loads(drawn(grammars.compile(schema(short)), tokenizer, seed))
    assert value["name"] in ("Ann", "Bo")
    assert value["age"] in (4, 71)


def test_a_context_free_grammar_nests(grammars: Grammars, tokenizer: TextTokenizer) -> None:
    guide = grammars.compile(Grammar("lark", 'start: "(" start ")" | "x"'))
    for token in [*tokenizer.encode("((x))", add_special_tokens=False)]:
        if guide.allowed[token // 8] >> token % 8 & 1 == 0:
            pytest.skip("this tokenizer puts a mark before the first word")
        guide.accept(token)
    assert guide.ended or guide.allowed[END // 8] >> END % 8 & 1


def test_tokens_beyond_the_tokenizer_are_never_allowed(grammars: Grammars, tokenizer: TextTokenizer) -> None:
    guide = grammars.compile(Grammar("regex", "(?s:.*)"))
    mask = int.from_bytes(guide.allowed, "little")
    assert mask >> tokenizer.vocab_size == 0
    assert mask.bit_count() > 50


def test_two_answers_do_not_share_their_state(grammars: Grammars) -> None:
    grammar = Grammar("regex", "[ab]{1,9}")
    first, second = grammars.compile(grammar), grammars.compile(grammar)
    before = second.allowed
    mask = int.from_bytes(first.allowed, "little")
    first.accept((mask & -mask).bit_length() - 1)
    assert second.allowed == before
    assert grammars.compile(grammar).allowed == before


def test_line_ends_between_parts_of_json_are_bounded(grammars: Grammars, tokenizer: TextTokenizer) -> None:
    guide = grammars.compile(schema(PERSON))
    for token in tokenizer.encode("{", add_special_tokens=False):
        if guide.allowed[token // 8] >> token % 8 & 1 == 0:
            pytest.skip("this tokenizer puts a mark before the first word")
        guide.accept(token)
    blanks = [token for token in range(tokenizer.vocab_size) if tokenizer.decode([token]).strip(" \n") == ""]
    for _ in range(40):
        assert guide.allowed is not None
        mask = int.from_bytes(guide.allowed, "little")
        allowed = [token for token in blanks if mask >> token & 1]
        if not allowed:
            return
        guide.accept(allowed[-1])
    pytest.fail("blanks go on")


def _deep(depth: int) -> str:
    return '{"items":' * depth + "{}" + "}" * depth


BOMBS = {
    "not json": Grammar("json_schema", "{"),
    "no schema": Grammar("json_schema", "[1]"),
    "deep": Grammar("json_schema", _deep(5000)),
    "endless reference": schema({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}),
    "file": schema({"$ref": "file:///etc/passwd"}),
    "remote": schema({"$ref": "http://127.0.0.1:9/x"}),
    "long string": schema({"type": "string", "minLength": 10**9, "maxLength": 10**12}),
    "contradiction": schema({"allOf": [{"const": 1}, {"const": 2}]}),
    "long": Grammar("regex", "a" * (MAX_BYTES + 1)),
    "empty": Grammar("regex", ""),
    "bad regex": Grammar("regex", "(a"),
    "back reference": Grammar("regex", r"(a)\1"),
    "surrogate": Grammar("regex", "\ud800"),
    "bad lark": Grammar("lark", "start: ("),
    "unknown rule": Grammar("lark", "start: nowhere"),
    "unknown kind": Grammar("gbnf", "root ::= x"),
}
WORK = {
    "repeats": Grammar("regex", "((a{1,1000}){1,1000}){1,1000}"),
    "alternatives": Grammar("regex", "(a|a)*(a|b)*a(a|b){60}"),
    "many words": schema({"enum": [f"{place:05}" for place in range(7000)]}),
    "many patterns": schema(
        {"type": "object", "properties": {f"p{n}": {"pattern": "(a{1,90}){1,90}"} for n in range(500)}}
    ),
    "ambiguous": Grammar("lark", 'start: x x x x x x\nx: x x | "a" | "b" x'),
    "left recursive": Grammar("lark", 'start: start start | "a" | ""'),
    "all of any": schema(
        {"allOf": [{"anyOf": [{"properties": {f"a{i}{j}": {}}} for i in range(9)]} for j in range(7)]}
    ),
    "many items": schema({"type": "array", "minItems": 10**7, "items": {"type": "integer"}}),
}


@pytest.mark.parametrize("name", sorted(BOMBS))
def test_what_is_no_grammar_gets_one_line(grammars: Grammars, name: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^grammar: ") as raised:
        grammars.compile(BOMBS[name])
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize("name", sorted(WORK))
def test_hard_grammars_end_in_bounded_work(grammars: Grammars, name: str) -> None:
    """Refused at once, failed on the way, or followed: each of them within the CPU time of two seconds."""
    before_s = time.process_time()
    try:
        guide = grammars.compile(WORK[name])
    except InvalidRequest:
        pass
    else:
        draw = random.Random(1)
        for _ in range(60):
            if guide.ended or guide.failure is not None:
                break
            mask = int.from_bytes(guide.allowed, "little")
            guide.accept(draw.choice([token for token in range(mask.bit_length()) if mask >> token & 1]))
    assert time.process_time() - before_s < 2


def test_an_answer_that_breaks_the_grammar_fails_with_a_line(grammars: Grammars) -> None:
    guide = grammars.compile(Grammar("regex", "[0-9]+"))
    mask = int.from_bytes(guide.allowed, "little")
    guide.accept(next(token for token in range(10**6) if not mask >> token & 1))
    assert guide.failure is not None
    assert str(guide.failure).startswith("grammar: can't be followed")


async def test_another_thread_does_the_work(grammars: Grammars) -> None:
    guide = await grammars.guide(Grammar("regex", "a"))
    assert any(guide.allowed)


def test_a_tokenizer_that_llguidance_does_not_know_is_refused(tmp_path: Path) -> None:
    tokenizer = TextTokenizer.load(save(tmp_path, "unigram"))
    grammars = Grammars(tokenizer, tokenizer.vocab_size, [END])
    grammars.prepare()
    with pytest.raises(InvalidRequest, match="tokenizer can't follow one"):
        grammars.compile(Grammar("regex", "a"))
