"""What every maker of RULER's tasks gives."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """A document, what is asked about it, and the right answers."""

    document: str
    question: str
    """Follows the document at once, and ends with the beginning of the answer."""
    answers: tuple[str, ...]

    @property
    def text(self) -> str:
        """The whole prompt."""
        return self.document + self.question


Maker = Callable[[random.Random, int, int], Problem]
"""(random numbers, units of haystack, the length in tokens) -> a problem."""
