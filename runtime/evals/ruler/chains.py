"""RULER's `vt`: variables that are assigned one from another, among repeated sentences."""

from __future__ import annotations

import itertools
import random
import string

from moorage.runtime.evals.haystack import GARBAGE
from moorage.runtime.evals.ruler.problem import Problem

_NUM_HOPS = 4
_TEXT = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{context}\n"
    "Question: Find all variables that are assigned the value {value} in the text above. "
    "Answer: According to the chain(s) of variable assignment in the text above, {count} variables are assigned "
    "the value {value}, they are:"
)
_SHORT_TOKENS = 4096
"""Below it the worked example is shorter, as RULER takes smaller steps there."""


def chains(rng: random.Random, units: int, length: int) -> Problem:
    """Units are sentence groups; a worked example with shorter names comes first."""
    example, names = _chain(rng, 3 if length < _SHORT_TOKENS else 12, 3)
    text, answers = _chain(rng, units, 5)
    return Problem(f"{example} {' '.join(names)}\n\n{text}", tuple(answers))


def _chain(rng: random.Random, units: int, name_length: int) -> tuple[str, list[str]]:
    names: list[str] = []
    while len(names) <= _NUM_HOPS:
        name = "".join(rng.choices(string.ascii_uppercase, k=name_length))
        if name not in names:
            names.append(name)
    value = str(rng.randrange(10_000, 99_999))
    steps = [f"VAR {names[0]} = {value}"]
    steps += [f"VAR {name} = VAR {before}" for before, name in itertools.pairwise(names)]
    lines = [GARBAGE] * units
    places = sorted(rng.choices(range(units + 1), k=len(steps)))
    for shift, (place, step) in enumerate(zip(places, steps, strict=True)):
        lines.insert(place + shift, step)
    return _TEXT.format(context="\n".join(lines), value=value, count=len(names)), names
