"""What every maker of RULER's tasks gives."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """A whole prompt, the beginning of its answer included, and the right answers."""

    text: str
    answers: tuple[str, ...]


Maker = Callable[[random.Random, int, int], Problem]
"""(random numbers, units of haystack, the length in tokens) -> a problem."""
