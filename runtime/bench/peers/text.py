"""Token ids that every engine is given, by the model's own tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from moorage.runtime.evals.haystack import text_haystack
from moorage.runtime.text.tokenizer import TextTokenizer


class PeerText:
    """Prompts of one model."""

    def __init__(self, model: Path) -> None:
        self._tokenizer = TextTokenizer.load(model)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens."""
        return self._tokenizer.encode(text, add_special_tokens=False)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids."""
        return self._tokenizer.decode(token_ids)

    def document(self, num_tokens: int) -> list[int]:
        """So many tokens of the long document that comes with the package."""
        return text_haystack().tokens(self, num_tokens, seed=0)

    def questions(self, questions: Sequence[str]) -> list[list[int]]:
        """Each as a user's message, in the chat template where the model has one."""
        if not self._tokenizer.has_chat_template:
            return [self._tokenizer.encode(question) for question in questions]
        return [self._tokenizer.encode_chat([{"role": "user", "content": each}]) for each in questions]
