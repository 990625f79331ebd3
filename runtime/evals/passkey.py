"""The pass-key task: one number hidden in a long text and asked for at its end (Mohtashami and Jaggi, 2023).

A prompt is `TEXT FACT TEXT QUESTION`, all joined by single spaces, and the model goes on with the number:

    … The pass key is 48709. Remember it. 48709 is the pass key. … What is the pass key? The pass key is

The number has five digits, drawn from the seed like the text's beginning. The space before "What" belongs to the
format: the embedded model does not know the question after a line break.

The prompts of LMDeploy's page on long contexts and of ChunkLlama's test open with a description of the task; the
former joins its parts by spaces, the latter by line breaks, and the place of the fact is drawn uniformly.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from moorage.runtime.evals.asking import Question, ask
from moorage.runtime.evals.compare.wordings import PASSKEY_WORDINGS
from moorage.runtime.evals.haystack import Haystack, Material, hide
from moorage.runtime.evals.targets import Target
from moorage.runtime.evals.tasks import Metric, Outcome, Place, spread
from moorage.workers.errors import InvalidRequest

FACT = " The pass key is {key}. Remember it. {key} is the pass key."
QUESTION = " What is the pass key? The pass key is"
DESCRIPTION = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize {it}. "
    "I will quiz you about the important information there."
)
NUM_DIGITS = 5
ANSWER_TOKENS = 8
"""Enough for a space, the digits one by one and a full stop."""


class Style(StrEnum):
    """What the facts are hidden in, and how the prompt is put together."""

    TEXT = "text"
    GARBAGE = "garbage"
    LMDEPLOY = "lmdeploy"
    CHUNKLLAMA = "chunkllama"
    WORDINGS = "wordings"
    """In a text, and in ten wordings that no published test has, one after the other."""

    @property
    def published(self) -> bool:
        """Whether it is another system's own test."""
        return self in (Style.LMDEPLOY, Style.CHUNKLLAMA)

    @property
    def in_text(self) -> bool:
        """Whether a real text stands round the fact."""
        return self in (Style.TEXT, Style.WORDINGS)

    def frame(self, index: int = 0) -> Frame:
        """The parts of the prompt of one sample beside the text."""
        if self is Style.WORDINGS:
            fact, question = PASSKEY_WORDINGS[index % len(PASSKEY_WORDINGS)]
            return Frame(fact=fact, question=question)
        if self is Style.LMDEPLOY:
            return Frame(DESCRIPTION.format(it="them") + " ", FACT, QUESTION)
        if self is Style.CHUNKLLAMA:
            fact, question = FACT.lstrip(), QUESTION.lstrip()
            return Frame(DESCRIPTION.format(it="it") + "\n", f"\n{fact}\n", f"\n{question}")
        return Frame()


@dataclass(frozen=True, slots=True)
class Frame:
    """What stands before the text, inside it and after it."""

    opening: str = ""
    fact: str = FACT
    question: str = QUESTION


@dataclass(frozen=True, slots=True)
class PasskeySample:
    """One prompt. `depth` is the share of the text before the fact."""

    prompt_ids: tuple[int, ...]
    answer: str
    depth: float
    num_tokens: int


def make_samples(
    material: Material, num_tokens: int, num_samples: int, seed: int = 0, *, depth: float | None = None
) -> list[PasskeySample]:
    """Prompts of exactly `num_tokens`; depths are spread evenly, in the middle of `num_samples` equal parts.

    The same seed gives the same prompts. Raises InvalidRequest when the length has no room for the fact and the
    question.
    """
    depths = [(index + 0.5) / num_samples if depth is None else depth for index in range(num_samples)]
    return [
        make_sample(material, num_tokens, place, seed * 1_000_003 + index)
        for index, place in enumerate(depths)
    ]


def make_sample(
    material: Material,
    num_tokens: int,
    depth: float,
    seed: int,
    *,
    frame: Frame = Frame(),
    text_seed: int | None = None,
) -> PasskeySample:
    """One prompt of exactly `num_tokens`, its text drawn by `seed` unless it has a seed of its own.

    Raises InvalidRequest for a depth outside 0 to 1 or too short a prompt."""
    if not 0.0 <= depth <= 1.0:
        raise InvalidRequest(f"depth: {depth} is not between 0 and 1; give a number within")
    rng, coder = random.Random(seed), material.coder
    answer = str(rng.randrange(10 ** (NUM_DIGITS - 1), 10**NUM_DIGITS))
    opening = coder.encode(frame.opening) if frame.opening else ()
    question = coder.encode(frame.question)
    facts = [(depth, frame.fact.format(key=answer))]
    drawn = rng.randrange(2**32)
    text_seed = drawn if text_seed is None else text_seed
    ids = hide(material, num_tokens, facts, text_seed, opening, question)
    return PasskeySample(tuple(ids), answer, depth, len(ids))


def is_correct(output_text: str, answer: str) -> bool:
    """Whether the first number of the output is the answer."""
    number = re.search(r"\d+", output_text)
    return number is not None and number[0] == answer


@dataclass(frozen=True, slots=True)
class Passkey:
    """The task: `samples` keys at each length, and at each depth where depths are given."""

    haystack: Haystack
    style: Style
    lengths: tuple[int, ...]
    samples: int
    seed: int = 0
    depths: tuple[float, ...] | None = None
    one_text: bool = False
    """One text for all keys of a length, the deepest first, so that the text before a key is prefilled once."""
    name: str = "passkey"
    metric: Metric = Metric.ACCURACY

    @property
    def by_depth(self) -> bool:
        """Whether depths were asked for."""
        return self.depths is not None

    def settings(self) -> Mapping[str, Any]:
        """The style and the text."""
        settings = {"style": self.style.value, "text": self.haystack.fingerprint()}
        return settings | {"one_text": True} if self.one_text else settings

    def places(self) -> list[Place]:
        """Depths are spread evenly; a published style without depths draws them, as it was published."""
        places = spread(self.lengths, self.samples, self.depths)
        if self.one_text:
            return sorted(places, key=lambda place: (place.length, -(place.depth or 0.0)))
        if self.depths is None and self.style.published:
            rng = random.Random(self.seed)
            return [Place(place.index, place.length, round(rng.random(), 4)) for place in places]
        return places

    def sample(self, place: Place, target: Target) -> PasskeySample:
        """The prompt of one place."""
        assert place.length is not None
        assert place.depth is not None
        return make_sample(
            Material(self.haystack, target, target.prefix()),
            place.length - ANSWER_TOKENS,
            place.depth,
            self.seed * 1_000_003 + place.index,
            frame=self.style.frame(place.index),
            text_seed=self.seed if self.one_text else None,
        )

    def measure(self, place: Place, target: Target) -> Outcome:
        """Right when the first number of the answer is the key."""
        sample = self.sample(place, target)
        session = f"passkey {self.seed}" if self.one_text else None
        answers = (sample.answer,)
        asked = len(target.encode(self.style.frame(place.index).question))
        question = Question(
            sample.prompt_ids,
            ANSWER_TOKENS,
            answers,
            is_correct_of_one,
            question_tokens=asked,
            session=session,
        )
        return ask(target, question)


def is_correct_of_one(output_text: str, answers: Sequence[str]) -> float:
    """`is_correct` as a score of one sample's only answer."""
    return float(is_correct(output_text, answers[0]))
