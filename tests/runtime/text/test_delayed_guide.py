"""A grammar after reasoning: everything may be said up to the mark, and only what matches after it."""

from __future__ import annotations

from pathlib import Path

import pytest

from moorage.runtime.api.http.prompts import Message
from moorage.runtime.api.http.tools.answers import ToolConversation
from moorage.runtime.serving.protocol import GenerateParams
from moorage.runtime.text.delayed_guide import DelayedGuide
from moorage.runtime.text.grammar import Grammar, Grammars
from moorage.runtime.text.reasoning import FORMATS, ReasoningUse
from moorage.runtime.text.tokenizer import TextTokenizer
from tests import tokenizers
from tests.runtime.text.test_grammar import END, drawn
from tests.toy_engine import ToyEngine

CHOICE = Grammar("regex", "yes|no")


@pytest.mark.parametrize("added", [tokenizers.PLAIN_ADDED, ()], ids=["a token", "letters"])
@pytest.mark.parametrize("reasoning", ["</think>", "So.\n</think>", "a</thinb</think>"])
def test_what_matches_comes_after_the_mark(tmp_path: Path, added: tuple[str, ...], reasoning: str) -> None:
    tokenizer = TextTokenizer.load(tokenizers.save(tmp_path, "byte_level", added=added))
    grammars = Grammars(tokenizer, tokenizer.vocab_size, [END])
    guide = DelayedGuide(grammars.compile(CHOICE), "</think>", tokenizer.spelling)
    for token_id in tokenizer.encode(reasoning, add_special_tokens=False):
        assert guide.allowed is None
        assert not guide.ended
        guide.accept(token_id)
    assert drawn(guide, tokenizer, seed=1) in ("yes", "no")
    assert guide.ended
    assert guide.failure is None


def test_a_token_that_does_not_match_after_it_fails(tmp_path: Path) -> None:
    tokenizer = TextTokenizer.load(tokenizers.save(tmp_path, "byte_level"))
    grammars = Grammars(tokenizer, tokenizer.vocab_size, [END])
    guide = DelayedGuide(grammars.compile(CHOICE), "</think>", tokenizer.spelling)
    for token_id in tokenizer.encode("</think>maybe", add_special_tokens=False)[:2]:
        assert guide.failure is None
        guide.accept(token_id)
    assert guide.failure is not None


@pytest.mark.parametrize(
    ("prompt", "delayed"), [("a<think>\n", True), ("a", False), ("<think></think>", False)]
)
def test_only_where_the_prompt_has_begun_the_reasoning(tmp_path: Path, prompt: str, delayed: bool) -> None:
    tokenizer, engine = TextTokenizer.load(tokenizers.save(tmp_path, "byte_level")), ToyEngine()
    guide = Grammars(tokenizer, tokenizer.vocab_size, [END]).compile(CHOICE)
    params = GenerateParams(engine.tokenizer.encode(prompt), grammar=CHOICE, guide=guide)
    talk = ToolConversation([Message("user", "a")], reasoning=ReasoningUse(FORMATS["qwen3"]))
    assert isinstance(talk.after_reasoning(engine, params).guide, DelayedGuide) is delayed
    plain = ToolConversation([Message("user", "a")])
    assert plain.after_reasoning(engine, params).guide is guide
