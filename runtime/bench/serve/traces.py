"""Conversations that a load test asks: each over a document of its own, in several turns."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

QUESTION_TOKENS = 32
"""New tokens of each turn after the first."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of the server."""

    conversations: int
    turns: int
    input_tokens: int
    """Tokens of the first turn's prompt."""
    output_tokens: int
    """Tokens of each answer; the server goes on after the end of the sequence, so that every answer has as many."""
    rate: float
    """Conversations that begin in a second, in the mean; infinity begins all at once."""
    max_concurrency: int
    """Requests that are under way at most."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Conversation:
    """The prompts of one conversation, without the answers between them."""

    number: int
    starts_s: float
    """Seconds after the begin of the run."""
    document: tuple[int, ...]
    questions: tuple[tuple[int, ...], ...]
    """The questions of the turns after the first."""


def conversations(load: Load, text: Sequence[int]) -> Iterator[Conversation]:
    """Conversations over parts of `text`, token ids. Each begins with other tokens, so that none shares a prefix.

    They begin at the times of a Poisson process. The same seed gives the same conversations.
    """
    draw = random.Random(load.seed)
    starts_s = 0.0
    for number in range(load.conversations):
        document = unlike_prompt(draw, text, load.input_tokens)
        questions = tuple(unlike_prompt(draw, text, QUESTION_TOKENS) for _ in range(load.turns - 1))
        yield Conversation(number, starts_s, document, questions)
        starts_s += 0.0 if load.rate == float("inf") else draw.expovariate(load.rate)


def unlike_prompt(draw: random.Random, text: Sequence[int], length: int) -> tuple[int, ...]:
    """`length` tokens of the text from a drawn place on, which repeats where it is shorter, after 8 drawn tokens."""
    salt = draw.choices(text, k=min(8, length))
    start, size = draw.randrange(len(text)), len(text)
    return (*salt, *(text[place % size] for place in range(start, start + length - len(salt))))
