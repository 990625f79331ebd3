"""RULER's `vt`: variables that are assigned one from another, among repeated sentences."""

from __future__ import annotations

import itertools
import random
import string
from dataclasses import dataclass

from moorage.runtime.evals.haystack import GARBAGE, Haystack
from moorage.runtime.evals.ruler.problem import Problem

_NUM_HOPS = 4
_DOCUMENT = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{context}"
)
_QUESTION = (
    "\nQuestion: Find all variables that are assigned the value {value} in the text above. "
    "Answer: According to the chain(s) of variable assignment in the text above, {count} variables are assigned "
    "the value {value}, they are:"
)
_LINE_WORDS = 15
"""Words of a line of text, about as many as the sentence group has."""
_SHORT_TOKENS = 4096
"""Below it the worked example is shorter, as RULER takes smaller steps there."""


@dataclass(frozen=True, slots=True)
class Chains:
    """The maker of `vt`: among one sentence group, as published, or among lines of a text."""

    haystack: Haystack | None = None

    def __call__(self, rng: random.Random, units: int, length: int) -> Problem:
        """Units are sentence groups or words; a worked example with shorter names comes first."""
        example = _chain(rng, [GARBAGE] * (3 if length < _SHORT_TOKENS else 12), 3)
        problem = _chain(rng, self._lines(rng, units), 5)
        shown = f"{example.text} {' '.join(example.answers)}\n\n"
        return Problem(shown + problem.document, problem.question, problem.answers)

    def _lines(self, rng: random.Random, units: int) -> list[str]:
        if self.haystack is None:
            return [GARBAGE] * units
        words = self.haystack.words(rng, units).split(" ")
        return [" ".join(words[start : start + _LINE_WORDS]) for start in range(0, units, _LINE_WORDS)]


def _chain(rng: random.Random, lines: list[str], name_length: int) -> Problem:
    names: list[str] = []
    while len(names) <= _NUM_HOPS:
        name = "".join(rng.choices(string.ascii_uppercase, k=name_length))
        if name not in names:
            names.append(name)
    value = str(rng.randrange(10_000, 99_999))
    steps = [f"VAR {names[0]} = {value}"]
    steps += [f"VAR {name} = VAR {before}" for before, name in itertools.pairwise(names)]
    lines = list(lines)
    places = sorted(rng.choices(range(len(lines) + 1), k=len(steps)))
    for shift, (place, step) in enumerate(zip(places, steps, strict=True)):
        lines.insert(place + shift, step)
    question = _QUESTION.format(value=value, count=len(names))
    return Problem(_DOCUMENT.format(context="\n".join(lines)), question, tuple(names))
