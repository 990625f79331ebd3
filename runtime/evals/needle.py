"""Needle in a haystack, by depth and length: one number, alone or among others like it, in a text.

The needle's sentence is that of RULER's `niah` tasks (Hsieh et al., 2024) or of the test of LWM's models (Liu et
al., 2024), whose prompt names a user and an assistant. With several needles the one asked for lies at the depth given
and the others anywhere. A prompt has exactly the length asked for. Samples may also share a text, over which the
needles are spread evenly, and ask for one after the other; then prompts differ in length by what their questions do.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from moorage.runtime.evals.asking import Question, Scorer, ask
from moorage.runtime.evals.haystack import Haystack, Material, hide
from moorage.runtime.evals.metrics.matching import match_all
from moorage.runtime.evals.metrics.numbers import first_digits
from moorage.runtime.evals.targets import Target
from moorage.runtime.evals.tasks import Metric, Outcome, Place, spread
from moorage.workers.errors import InvalidRequest

NUM_DIGITS = 7
FACT = " One of the special magic numbers for {key} is: {value}."
QUESTION = (
    " What is the special magic number for {key} mentioned in the provided text? "
    "The special magic number for {key} mentioned in the provided text is"
)
ANSWER_TOKENS = 12
"""Enough for a space, the digits one by one and a full stop."""
# fmt: off
_CITIES = (
    "Athens", "Bangkok", "Berlin", "Cairo", "Copenhagen", "Dakar", "Delhi", "Dublin", "Hanoi", "Helsinki", "Istanbul",
    "Jakarta", "Kigali", "Lagos", "Lima", "Lisbon", "Madrid", "Melbourne", "Mexico City", "Moscow", "Nairobi", "Oslo",
    "Paris", "Prague", "Quito", "Rabat", "Rome", "San Francisco", "Seattle", "Seoul", "Shanghai", "Sofia", "Sydney",
    "Tokyo", "Toronto", "Tunis", "Vienna", "Warsaw", "Yerevan", "Zagreb",
)
# fmt: on


class Form(StrEnum):
    """The words of a prompt."""

    RULER = "ruler"
    """As RULER's needles: a key of two words, and the beginning of the answer behind the question."""
    LWM = "lwm"
    """As in the test of LWM's models: a city, and the frame of a chat."""

    @property
    def words(self) -> Words:
        """The parts of its prompts, and how an answer is judged."""
        return _WORDS[self]


@dataclass(frozen=True, slots=True)
class Words:
    """The parts of a prompt beside the text."""

    opening: str
    fact: str
    question: str
    answer_tokens: int
    score: Scorer


_WORDS = {
    Form.RULER: Words("", FACT, QUESTION, ANSWER_TOKENS, first_digits),
    Form.LWM: Words(
        opening="You are a helpful assistant. USER: ",
        fact="\nThe special magic {key} number is: {value}\n",
        question=" What is the special magic {key} number? Don't give information outside the document or repeat "
        "your findings. Keep your response short and direct. ASSISTANT: ",
        answer_tokens=32,
        score=match_all,
    ),
}


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
    form: Form = Form.RULER
    one_text: bool = False
    """Whether as many samples as there are needles share a text, and each asks for another of them."""
    metric: Metric = Metric.ACCURACY
    _words: tuple[str, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Raises InvalidRequest for more needles than there are cities, and for depths where samples share a text."""
        if self.one_text and self.depths is not None:
            raise InvalidRequest(
                "depths: needles are spread where samples share a text; leave out one of both"
            )
        if self.form is Form.LWM and self.needles > len(_CITIES):
            raise InvalidRequest(
                f"needles: {self.needles} in one text; the lwm form has {len(_CITIES)} cities"
            )
        object.__setattr__(self, "_words", self.haystack.vocabulary())

    @property
    def by_depth(self) -> bool:
        """Whether depths were asked for."""
        return self.depths is not None

    def settings(self) -> Mapping[str, Any]:
        """The text, how many needles it hides, and in which words."""
        text = {"text": self.haystack.fingerprint(), "needles": self.needles}
        shared = {"one_text": True} if self.one_text else {}
        return text | shared | ({} if self.form is Form.RULER else {"form": self.form.value})

    def places(self) -> list[Place]:
        """Depths as given, else spread evenly, over each text where samples share one."""
        if not self.one_text:
            return spread(self.lengths, self.samples, self.depths)
        return [
            Place(index, length, self._depth(index // self.needles, index % self.needles))
            for length in self.lengths
            for index in range(self.samples)
        ]

    def measure(self, place: Place, target: Target) -> Outcome:
        """Right when the first number of the answer is the one asked for; LWM's test wants it anywhere in it."""
        assert place.length is not None
        assert place.depth is not None
        words, asked = self.form.words, place.index % self.needles if self.one_text else 0
        text = f"{place.index // self.needles}" if self.one_text else f"{place.index}/{place.depth}"
        rng = random.Random(f"{self.seed}/{text}")
        keys = self._keys(rng)
        values = rng.sample(range(10 ** (NUM_DIGITS - 1), 10**NUM_DIGITS), self.needles)
        depths = [place.depth, *(rng.random() for _ in keys[1:])]
        if self.one_text:
            depths = [self._depth(place.index // self.needles, number) for number in range(self.needles)]
        facts = [
            (depth, words.fact.format(key=key, value=value))
            for depth, key, value in zip(depths, keys, values, strict=True)
        ]
        opening = target.encode(words.opening) if words.opening else []
        questions = [target.encode(words.question.format(key=key)) for key in keys]
        question, room = questions[asked], place.length - words.answer_tokens
        if self.one_text:
            room -= max(map(len, questions)) - len(question)
        material = Material(self.haystack, target, target.prefix())
        prompt = hide(material, room, facts, rng.randrange(2**32), opening, question)
        session = f"{self.name} {self.seed}" if self.one_text else None
        answers, most = (str(values[asked]),), words.answer_tokens
        return ask(
            target,
            Question(prompt, most, answers, words.score, question_tokens=len(question), session=session),
        )

    def _depth(self, text: int, number: int) -> float:
        """The depth of a needle of a text that samples share; texts differ in it."""
        texts = -(-self.samples // self.needles)
        return (number + (text + 0.5) / texts) / self.needles

    def _keys(self, rng: random.Random) -> list[str]:
        """What the needles are known by, the one asked for first."""
        if self.form is Form.LWM:
            return rng.sample(_CITIES, self.needles)
        return [
            f"{first}-{second}" for first, second in (rng.sample(self._words, 2) for _ in range(self.needles))
        ]
