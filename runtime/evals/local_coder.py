"""A model's tokenizer as prompts are built with."""

from __future__ import annotations

from collections.abc import Sequence

from moorage.runtime.evals.targets import prefix_of
from moorage.runtime.text.tokenizer import TextTokenizer


class LocalCoder:
    """Text to token ids without special tokens, and back."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`."""
        return self._tokenizer.encode(text, add_special_tokens=False)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of `token_ids`."""
        return self._tokenizer.decode(token_ids)

    def prefix(self) -> list[int]:
        """What the model expects before a text, such as BOS."""
        return prefix_of(self.encode, self._tokenizer.encode)
