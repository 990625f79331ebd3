"""Retrieval from JSON: many keys and values, one of which is asked for ("Lost in the Middle", InfiniteBench)."""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from moorage.runtime.evals.asking import Question, ask, encode_long, fit
from moorage.runtime.evals.metrics.matching import among_words
from moorage.runtime.evals.ruler.problem import Problem
from moorage.runtime.evals.targets import Target
from moorage.runtime.evals.tasks import Metric, Outcome, Place, spread
from moorage.workers.counting import counted
from moorage.workers.errors import InvalidRequest

OPENING = "Extract the value corresponding to the specified key in the JSON object below.\n\n"
QUESTION = '\n\nKey: "{key}"\nCorresponding value:'


class Form(StrEnum):
    """What keys and values look like."""

    HEX = "hex"
    """Eight hexadecimal digits."""
    UUID = "uuid"
    """As published: 32 hexadecimal digits in five groups."""

    @property
    def answer_tokens(self) -> int:
        """Enough for quotes and every digit as a token of its own."""
        return 14 if self is Form.HEX else 48

    def draw(self, rng: random.Random) -> str:
        """A key or a value."""
        if self is Form.HEX:
            return f"{rng.getrandbits(32):08x}"
        return str(uuid.UUID(int=rng.getrandbits(128), version=4))


@dataclass(slots=True)
class KeyValues:
    """The task: as many pairs as the length holds, or `pairs` of them whatever the length has room for."""

    lengths: tuple[int, ...]
    samples: int
    seed: int = 0
    depths: tuple[float, ...] | None = None
    form: Form = Form.HEX
    pairs: int | None = None
    name: str = "kv-retrieval"
    metric: Metric = Metric.ACCURACY
    _counts: dict[int, int] = field(default_factory=dict, repr=False)
    """The latest number of pairs at a length: where the next sample begins to look."""

    @property
    def by_depth(self) -> bool:
        """Whether depths were asked for."""
        return self.depths is not None

    def settings(self) -> Mapping[str, Any]:
        """What the pairs look like, and their number if it is fixed."""
        return {"form": self.form.value, "pairs": self.pairs}

    def places(self) -> list[Place]:
        """Depths as given, else spread evenly."""
        return spread(self.lengths, self.samples, self.depths)

    def measure(self, place: Place, target: Target) -> Outcome:
        """Right when the value is one of the answer's words."""
        assert place.length is not None
        room = place.length - self.form.answer_tokens
        prefix = target.prefix()

        def prompt(count: int) -> list[int]:
            return [*prefix, *encode_long(target, self._problem(place, count).text)]

        if self.pairs is not None:
            count = self.pairs
            needed = len(prompt(count)) + self.form.answer_tokens
            if needed > place.length:
                raise InvalidRequest(
                    f"lengths: {counted(place.length, 'token')} can't hold {counted(count, 'pair')}; "
                    f"give {needed} or more"
                )
        else:
            guess = self._counts.get(place.length, 16)
            count = self._counts[place.length] = fit(lambda n: len(prompt(n)), room, 2, guess)
        problem = self._problem(place, count)
        asked, most = len(target.encode(problem.question)), self.form.answer_tokens
        question = Question(prompt(count), most, problem.answers, among_words, question_tokens=asked)
        return ask(target, question)

    def _problem(self, place: Place, count: int) -> Problem:
        rng = random.Random(f"{self.seed}/{place.index}/{place.depth}")
        return key_value_problem(rng, self.form, place.depth or 0, count)


def key_value_problem(rng: random.Random, form: Form, depth: float, count: int) -> Problem:
    """`count` pairs, of which the one at `depth` is asked for."""
    drawn = [(form.draw(rng), form.draw(rng)) for _ in range(count)]
    key, value = drawn[min(round(depth * count), count - 1)]
    return Problem(OPENING + json.dumps(dict(drawn)), QUESTION.format(key=key), (value,))
