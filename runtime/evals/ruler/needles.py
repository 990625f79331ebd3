"""RULER's `niah` tasks: keyed numbers or UUIDs in repeated sentences, in a text, or among others like them."""

from __future__ import annotations

import random
import re
import uuid
from dataclasses import dataclass

from moorage.runtime.evals.haystack import GARBAGE, Haystack
from moorage.runtime.evals.ruler.problem import Problem

_NEEDLE = "One of the special magic {kind} for {key} is: {value}."
_MANY = (
    "Some special magic {kind} are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n{context}",
    "\nWhat are all the special magic {kind} for {query} mentioned in the provided text? "
    "The special magic {kind} for {query} mentioned in the provided text are",
)
_ONE = (
    "A special magic {kind} is hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n{context}",
    "\nWhat is the special magic {kind} for {query} mentioned in the provided text? "
    "The special magic {kind} for {query} mentioned in the provided text is",
)
"""The document and the question."""
_NUM_DEPTHS = 40


@dataclass(frozen=True, slots=True)
class Needles:
    """The maker of one `niah` task."""

    haystack: Haystack
    words: tuple[str, ...]
    place: str
    """noise (one sentence group), essay (the text) or needle (others like it)."""
    keys: str = "words"
    values: str = "numbers"
    num_keys: int = 1
    num_values: int = 1
    num_queries: int = 1

    def __call__(self, rng: random.Random, units: int, length: int) -> Problem:  # noqa: ARG002
        """Units are sentence groups, words of the text, or other needles."""
        num_keys = max(self.num_keys, self.num_queries)
        pairs = [
            (self._draw(rng, self.keys), [self._draw(rng, self.values) for _ in range(self.num_values)])
            for _ in range(num_keys)
        ]
        needles = [self._needle(key, value) for key, values in pairs for value in values]
        rng.shuffle(needles)
        asked = rng.sample(pairs, self.num_queries)
        keys = [key for key, _ in asked]
        query = ", ".join(keys[:-1]) + ", and " + keys[-1] if len(keys) > 1 else keys[0]
        answers = tuple(value for _, values in asked for value in values)
        context = (
            self._essay(rng, units, needles) if self.place == "essay" else self._lines(rng, units, needles)
        )
        one = len(answers) == 1
        kind = self.values[:-1] if one else self.values
        document, question = _ONE if one else _MANY
        return Problem(
            document.format(kind=kind, context=context), question.format(kind=kind, query=query), answers
        )

    def _lines(self, rng: random.Random, units: int, needles: list[str]) -> str:
        if self.place == "noise":
            lines = [GARBAGE] * units
        else:
            lines = [
                self._needle(self._draw(rng, self.keys), self._draw(rng, self.values)) for _ in range(units)
            ]
        for at, needle in zip(
            sorted(rng.sample(range(units), len(needles)), reverse=True), needles, strict=True
        ):
            lines.insert(at, needle)
        return "\n".join(lines)

    def _essay(self, rng: random.Random, units: int, needles: list[str]) -> str:
        sentences = re.split(r"(?<=[.!?])\s+", self.haystack.words(rng, units))
        depths = sorted(rng.sample([step / (_NUM_DEPTHS - 1) for step in range(_NUM_DEPTHS)], len(needles)))
        parts, begin = [], 0
        for depth, needle in zip(depths, needles, strict=True):
            cut = int(len(sentences) * depth)
            parts += [*sentences[begin:cut], needle]
            begin = cut
        return " ".join([*parts, *sentences[begin:]])

    def _needle(self, key: str, value: str) -> str:
        return _NEEDLE.format(kind=self.values, key=key, value=value)

    def _draw(self, rng: random.Random, kind: str) -> str:
        if kind == "numbers":
            return str(rng.randrange(10**6, 10**7))
        if kind == "uuids":
            return str(uuid.UUID(int=rng.getrandbits(128), version=4))
        return "-".join(rng.sample(self.words, 2))
