"""Needle in a haystack, by depth and length: one number, alone or among others like it, in a text.

The needle's sentence is that of RULER's `niah` tasks (Hsieh et al., 2024). With several needles the one asked for
lies at the depth given and the others anywhere. A prompt has exactly the length asked for.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moorage.runtime.evals.asking import Question, ask
from moorage.runtime.evals.haystack import Haystack, Material, hide
from moorage.runtime.evals.metrics.numbers import first_digits
from moorage.runtime.evals.targets import Target
from moorage.runtime.evals.tasks import Metric, Outcome, Place, spread

FACT = " One of the special magic numbers for {key} is: {value}."
QUESTION = (
    " What is the special magic number for {key} mentioned in the provided text? "
    "The special magic number for {key} mentioned in the provided text is"
)
NUM_DIGITS = 7
ANSWER_TOKENS = 12
"""Enough for a space, the digits one by one and a full stop."""


@dataclass(frozen=True, slots=True)
class Needle:
    """The task: `samples` at each length and depth, with `needles` of them in each text."""

    haystack: Haystack
    lengths: tuple[int, ...]
    samples: int
    seed: int = 0
    depths: tuple[float, ...] | None = None
    needles: int = 1
    name: str = "needle"
    metric: Metric = Metric.ACCURACY
    _words: tuple[str, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_words", self.haystack.vocabulary())

    @property
    def by_depth(self) -> bool:
        """Whether depths were asked for."""
        return self.depths is not None

    def settings(self) -> Mapping[str, Any]:
        """The text, and how many needles it hides."""
        return {"text": self.haystack.fingerprint(), "needles": self.needles}

    def places(self) -> list[Place]:
        """Depths as given, else spread evenly."""
        return spread(self.lengths, self.samples, self.depths)

    def measure(self, place: Place, target: Target) -> Outcome:
        """Right when the first number of the answer is the one asked for."""
        assert place.length is not None
        assert place.depth is not None
        rng = random.Random(f"{self.seed}/{place.index}/{place.depth}")
        keys = [
            f"{first}-{second}" for first, second in (rng.sample(self._words, 2) for _ in range(self.needles))
        ]
        values = rng.sample(range(10 ** (NUM_DIGITS - 1), 10**NUM_DIGITS), self.needles)
        depths = [place.depth, *(rng.random() for _ in keys[1:])]
        facts = [
            (depth, FACT.format(key=key, value=value))
            for depth, key, value in zip(depths, keys, values, strict=True)
        ]
        question = target.encode(QUESTION.format(key=keys[0]))
        room = place.length - ANSWER_TOKENS
        material = Material(self.haystack, target, target.prefix())
        prompt = hide(material, room, facts, rng.randrange(2**32), question=question)
        answers = (str(values[0]),)
        return ask(
            target, Question(prompt, ANSWER_TOKENS, answers, first_digits, question_tokens=len(question))
        )
