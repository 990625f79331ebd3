"""Text of generated tokens as they come, continuing the text of the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_MOST_PENDING = 16
"""Tokens held back for an unfinished character; more are no character but bytes that will never be one."""
_MOST_UNFINISHED = 4
"""Tokens at the end of a prompt that may begin a character: UTF-8 needs four bytes at most."""
_SEED_TOKENS = 64
"""The last tokens of a prompt that are looked at for a seed."""


class Decoder(Protocol):
    """What a TextTokenizer offers for this."""

    special_ids: frozenset[int]

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of token ids."""


class IncrementalDecoder:
    """Text of a growing sequence of tokens, in pieces that never split a character.

    A piece is the difference of two decodings of the latest tokens (as in Hugging Face's
    text-generation-inference), since a token's text can depend on the one before it, as a leading space does. The
    first piece continues the prompt: the text of the prompt and all pieces are the text of all tokens. Where a
    prompt of token ids ends within a character, the first piece has the whole character.
    """

    def __init__(
        self,
        tokenizer: Decoder,
        prompt: Sequence[int] = (),
        *,
        shown: frozenset[int] = frozenset(),
    ) -> None:
        """Special tokens are skipped, but for those `shown`."""
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids - shown
        tail = [token_id for token_id in prompt[-_SEED_TOKENS:] if token_id not in self._skipped]
        self._given, self._shown = self._seed(tail)
        """Tokens that the spelling of the next may depend on, and as much of their text as was given."""
        self._pending: list[int] = []
        self._seeded = bool(tail)
        """Whether `_given` is of the prompt, and so may end within a character."""

    def push(self, token_id: int) -> str:
        """The text that `token_id` completes; empty while a character is unfinished."""
        if token_id in self._skipped:
            return ""
        self._pending.append(token_id)
        text = self._text()
        unfinished = not text or text.endswith(_REPLACEMENT)
        if unfinished and len(self._pending) < _MOST_PENDING:
            return ""
        self._show_pending()
        return text

    def flush(self) -> str:
        """What an unfinished end decodes to."""
        text = self._text() if self._pending else ""
        self._show_pending()
        return text

    def _show_pending(self) -> None:
        self._given, self._pending = [*self._given, *self._pending] if self._seeded else self._pending, []
        self._seeded = False
        self._shown = self._decode(self._given)

    def _seed(self, tail: list[int]) -> tuple[list[int], str]:
        """The shortest end of a prompt that has whole characters, and their text."""
        spelled = self._tokenizer.encode(_REPLACEMENT, add_special_tokens=False) if tail else []
        if spelled and tail[-len(spelled) :] == spelled:
            return spelled, self._decode(spelled)
        for start in range(len(tail) - 1, -1, -1):
            ends = range(len(tail), max(start, len(tail) - 1 - _MOST_UNFINISHED), -1)
            texts = (self._decode(tail[start:end]).rstrip(_REPLACEMENT) for end in ends)
            shown = max((text for text in texts if _REPLACEMENT not in text), key=len, default="")
            if shown:
                return tail[start:], shown
        return tail, ""

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=False) if token_ids else ""

    def _text(self) -> str:
        return self._decode(self._given + self._pending)[len(self._shown) :]


def decoder_of(
    tokenizer: Decoder | None, prompt: Sequence[int], shown: frozenset[int]
) -> IncrementalDecoder | None:
    """A decoder for the answer to a prompt; none without a tokenizer. `shown` are special tokens that it has."""
    return None if tokenizer is None else IncrementalDecoder(tokenizer, prompt, shown=shown)


def text_after(tokenizer: Decoder, prompt: Sequence[int], generated: Sequence[int]) -> str:
    """What `generated` adds to the text of `prompt`."""
    decoder = IncrementalDecoder(tokenizer, prompt)
    return "".join(map(decoder.push, generated)) + decoder.flush()
