"""Log-probabilities of tokens in the two shapes of the OpenAI API."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from moorage.runtime.serving.protocol import Token

Spelling = Callable[[int], str]
"""The text of one token."""


def chat_logprob(token: Token, spelling: Spelling) -> dict[str, Any]:
    """One entry of `logprobs.content` of a chat completion."""
    top = [_spelled(spelling(token_id), logprob) for token_id, logprob in token.top_logprobs]
    return {**_spelled(spelling(token.token_id), token.logprob), "top_logprobs": top}


@dataclass(slots=True)
class CompletionLogprobs:
    """The lists of a completion's `logprobs`, which grow with each token."""

    spelling: Spelling
    num_top: int
    tokens: list[str] = field(default_factory=list)
    token_logprobs: list[float | None] = field(default_factory=list)
    top_logprobs: list[dict[str, float] | None] = field(default_factory=list)
    text_offset: list[int] = field(default_factory=list)
    end: int = 0
    """Characters of all tokens so far."""

    def add(self, token_id: int, logprob: float | None, top: tuple[tuple[int, float], ...]) -> None:
        """Adds one token; a prompt's first has no log-probability."""
        text = self.spelling(token_id)
        self.tokens.append(text)
        self.token_logprobs.append(logprob)
        likeliest = {self.spelling(other): value for other, value in reversed(top)}
        if logprob is None:
            self.top_logprobs.append(None)
        else:
            self.top_logprobs.append({text: logprob, **likeliest})
        self.text_offset.append(self.end)
        self.end += len(text)

    def take(self) -> dict[str, Any]:
        """What was added since the last call."""
        taken = {
            "tokens": self.tokens,
            "token_logprobs": self.token_logprobs,
            "top_logprobs": self.top_logprobs,
            "text_offset": self.text_offset,
        }
        self.tokens, self.token_logprobs, self.top_logprobs, self.text_offset = [], [], [], []
        return taken


def _spelled(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}
