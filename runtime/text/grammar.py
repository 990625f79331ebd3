"""Output that follows a JSON schema, a regular expression or a context-free grammar, by llguidance.

After each token the grammar says which tokens may follow; all others are excluded from the draw. llguidance bounds
the work of a grammar, of its compilation and of each token, so that no grammar holds up other requests for long; it
releases Python's lock while it works.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from moorage.workers.errors import InvalidRequest

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from moorage.runtime.text.tokenizer import TextTokenizer

KINDS = ("json_schema", "regex", "lark")
MAX_BYTES = 64 << 10
"""Most bytes of a grammar's text, in UTF-8. Compiling this much takes milliseconds."""
_MAX_REASON_CHARACTERS = 200
_WHITESPACE = r"[\x20\x0A\x0D\x09]{1,20}"
"""Space between parts of JSON. Small models, given no limit, write line ends until their tokens are used up."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer must follow. `text` is a JSON schema, a regular expression, or a grammar in Lark's syntax."""

    kind: str
    text: str


class Guide:
    """The state of one answer in its grammar."""

    def __init__(self, matcher: LLMatcher) -> None:
        """Raises InvalidRequest for a grammar that no answer can follow."""
        self._matcher = matcher
        self.failure: InvalidRequest | None = None
        """Why the answer can't go on."""
        self.allowed: bytes | None = self._next()
        """One bit for each token of the vocabulary, the lowest first: whether it may come next; None allows all."""
        if self.failure is not None:
            raise self.failure

    @property
    def ended(self) -> bool:
        """Whether the answer is whole and nothing can follow."""
        return bool(self._matcher.is_stopped())

    def accept(self, token_id: int) -> None:
        """Takes the next token of the answer, and says in `allowed` what may follow it, or in `failure` why not."""
        if not self._matcher.consume_token(token_id):
            self._fail()
        elif not self.ended:
            self.allowed = self._next()

    def _next(self) -> bytes:
        mask = bytes(self._matcher.compute_bitmask())
        if self._matcher.is_error() or not any(mask):
            self._fail()
        return mask

    def _fail(self) -> None:
        reason = _brief(self._matcher.get_error()) or "no token fits"
        self.failure = InvalidRequest(f"grammar: can't be followed ({reason}); send a simpler one")


class Grammars:
    """Compiles grammars for one model."""

    def __init__(self, tokenizer: TextTokenizer, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._text, self._vocab_size, self._ends = tokenizer, vocab_size, list(eos_token_ids)

    def prepare(self) -> None:
        """Reads the vocabulary, so that no request waits for it: up to a second, in which no other thread runs."""
        _ = self._tokenizer

    async def guide(self, grammar: Grammar) -> Guide:
        """A fresh guide; the work is done by another thread. Raises InvalidRequest for what is no grammar."""
        return await asyncio.to_thread(self.compile, grammar)

    def compile(self, grammar: Grammar) -> Guide:
        """Compiles in this thread."""
        from llguidance import LLMatcher

        check_grammar(grammar)
        if isinstance(self._tokenizer, str):
            raise InvalidRequest(
                f"grammar: the model's tokenizer can't follow one ({self._tokenizer}); leave it out"
            )
        matcher = LLMatcher(self._tokenizer, _compiled(grammar), log_level=0)
        if matcher.is_error():
            raise InvalidRequest(
                f"grammar: {grammar.kind} is refused ({_brief(matcher.get_error())}); mend it"
            )
        return Guide(matcher)

    @cached_property
    def _tokenizer(self) -> LLTokenizer | str:
        """The vocabulary, or why there is none."""
        from llguidance import LLTokenizer

        try:
            return LLTokenizer(self._text.as_json(), n_vocab=self._vocab_size, eos_token=self._ends or None)
        except (ValueError, RuntimeError) as error:
            return _brief(str(error))


def check_grammar(grammar: Grammar) -> None:
    """Raises InvalidRequest for an unknown kind, and for a text that is empty, too long, or no JSON as it must be."""
    if grammar.kind not in KINDS:
        raise InvalidRequest(f"grammar: kind {grammar.kind[:40]!r} is unknown; send {', '.join(KINDS)}")
    if not grammar.text:
        raise InvalidRequest(f"grammar: {grammar.kind} is empty; leave it out or send one")
    try:
        size = len(grammar.text.encode())
    except UnicodeEncodeError:
        raise InvalidRequest(f"grammar: {grammar.kind} has lone surrogates; send valid Unicode") from None
    if size > MAX_BYTES:
        raise InvalidRequest(f"grammar: {grammar.kind} has {size} bytes; send at most {MAX_BYTES}")
    if grammar.kind == "json_schema":
        _schema(grammar.text)


def _schema(text: str) -> dict[str, Any] | bool:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict | bool):
        raise InvalidRequest("grammar: json_schema must be a JSON object")
    return value


def _compiled(grammar: Grammar) -> str:
    """The grammar as llguidance takes it."""
    from llguidance import LLMatcher

    if grammar.kind == "regex":
        return LLMatcher.grammar_from_regex(grammar.text)
    if grammar.kind == "lark":
        return LLMatcher.grammar_from_lark(grammar.text)
    try:
        return LLMatcher.grammar_from_json_schema(
            grammar.text, overrides={"whitespace_pattern": _WHITESPACE, "coerce_one_of": True}
        )
    except ValueError as error:
        raise InvalidRequest(f"grammar: json_schema is refused ({_brief(str(error))}); mend it") from None


def _brief(reason: str) -> str:
    """One line of a reason that llguidance gives, which may quote the grammar."""
    line = " ".join(reason.split())
    return line if len(line) <= _MAX_REASON_CHARACTERS else line[:_MAX_REASON_CHARACTERS] + "…"
