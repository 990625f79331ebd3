"""Wordings drawn at random, so that none can be learnt by heart: a key and a value between any words.

What a model learns from fixed sentences it hardly uses in others (README.md); here each context has its own sentence,
and its own way to ask, and only the key says which value is meant.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from deploy.training.phrases import Phrases

_SMALL = (
    "the", "a", "of", "for", "in", "to", "and", "with", "that", "this", "by", "on", "at", "from", "as", "it", "one",
    "all", "any", "its", "which", "what", "here", "there", "now", "then", "also", "only", "given", "above", "text",
)  # fmt: skip
_CUES = (" is", " is", " is:", ":", ":", " =", " was", " are", " has", " gives", " reads", " ->")
"""What stands before a value."""
_ENDS = (".", ".", ".", ";", "", "\n")


@dataclass(frozen=True, slots=True)
class Frame:
    """A sentence with {k} and {v}, and a question with its lead, of which at least one has {k}."""

    statement: str
    question: str
    lead: str


def draw_frame(phrases: Phrases, rng: Random) -> Frame:
    """A sentence in which the key stands before the value, with words of the corpus, and questions in other words.

    In most of them an attribute stands in the sentence and in the question, as people ask.
    """
    attribute = [phrases.attribute()] if rng.random() < 0.75 else []
    key = ["{k}"]

    def words(most: int) -> list[str]:
        small = rng.random() < 0.7
        return [rng.choice(_SMALL) if small else phrases.word() for _ in range(rng.randint(0, most))]

    after = " ".join(["", *words(3)]) if rng.random() < 0.3 else ""
    said = _opened([*words(4), *attribute, *words(1), *key, *words(2)], rng)
    statement = f" {said}{rng.choice(_CUES)} {{v}}{after}{rng.choice(_ENDS)}"
    asked = _opened([*words(4), *attribute, *words(2), *key, *words(4)], rng) + rng.choice("?.:")
    form = rng.random()
    if form < 0.15:
        return Frame(statement, asked, rng.choice(("", "A:", "Answer:", "It is")))
    again = key if form < 0.85 else []
    lead = _opened([*words(2), *attribute, *words(1), *again, *words(4)], rng) + rng.choice(_CUES)
    return Frame(statement, "" if again and rng.random() < 0.3 else asked, lead)


def _opened(words: list[str], rng: Random) -> str:
    """Words as a sentence begins, mostly."""
    text = " ".join(words)
    return text[0].upper() + text[1:] if text and rng.random() < 0.7 else text
