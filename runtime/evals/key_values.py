"""Retrieval from JSON: many keys and values, one of which is asked for ("Lost in the Middle", InfiniteBench)."""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Callable, Mapping
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
_ONE_TEXT_MARGIN = 32
"""Tokens by which the questions of one object may differ."""
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
    one_text: bool = False
    """Whether all samples of a length ask for pairs of one object."""
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
        settings = {"form": self.form.value, "pairs": self.pairs}
        return settings | {"one_text": True} if self.one_text else settings

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
            count = self._count(place.length, lambda n: len(prompt(n)), room)
        problem = self._problem(place, count)
        asked, most = len(target.encode(problem.question)), self.form.answer_tokens
        session = f"{self.name} {self.seed}" if self.one_text else None
        return ask(
            target,
            Question(
                prompt(count), most, problem.answers, among_words, question_tokens=asked, session=session
            ),
        )

    def _count(self, length: int, size_of: Callable[[int], int], room: int) -> int:
        """About the most pairs that fit; samples of one object have as many as the first of them."""
        known = self._counts.get(length)
        if known is None or not self.one_text:
            margin = _ONE_TEXT_MARGIN if self.one_text else 0
            self._counts[length] = fit(size_of, room - margin, 2, known or 16)
        return self._counts[length]

    def _problem(self, place: Place, count: int) -> Problem:
        text = "" if self.one_text else f"/{place.index}/{place.depth}"
        rng = random.Random(f"{self.seed}{text}")
        return key_value_problem(rng, self.form, place.depth or 0, count)


def key_value_problem(rng: random.Random, form: Form, depth: float, count: int) -> Problem:
    """`count` pairs, of which the one at `depth` is asked for."""
    drawn = [(form.draw(rng), form.draw(rng)) for _ in range(count)]
    key, value = drawn[min(round(depth * count), count - 1)]
    return Problem(OPENING + json.dumps(dict(drawn)), QUESTION.format(key=key), (value,))
