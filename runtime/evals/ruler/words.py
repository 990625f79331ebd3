"""RULER's `cwe` and `fwe`: the words that a long list or a coded text has most often."""

from __future__ import annotations

import random
import string
from dataclasses import dataclass

from moorage.runtime.evals.ruler.problem import Problem

_NUM_COMMON = 10
_SHORT_TOKENS = 4096
_LIST = (
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n{context}"
)
_ASKED = (
    "\nQuestion: What are the 10 most common words in the above list? "
    "Answer: The top 10 words that appear most often in the list are:"
)
_CODED = (
    "Read the following coded text and track the frequency of each coded word. Find the three most frequently "
    "appeared coded words. {context}"
)
_CODED_ASKED = (
    "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three most frequently "
    "appeared words in the above coded text? "
    "Answer: According to the coded text above, the three most frequently appeared words are:"
)
_WORD_LENGTH = 6
_ALPHA = 2.0
_ZETA_2 = 1.6449340668482264
_TOKENS_PER_CODED_WORD = 50
"""The vocabulary grows with the length: one word for so many tokens."""


@dataclass(frozen=True, slots=True)
class CommonWords:
    """The maker of `cwe`: ten words thirty times each, the others three times; six and once below 4K tokens."""

    words: tuple[str, ...]

    def __call__(self, rng: random.Random, units: int, length: int) -> Problem:
        """Units are different words; a worked example comes first."""
        short = length < _SHORT_TOKENS
        shown, common_shown = self._list(rng, 20 if short else 40, 3 if short else 10, 1 if short else 3)
        text, common = self._list(rng, units, 6 if short else 30, 1 if short else 3)
        return Problem(f"{shown}{_ASKED} {_numbered(common_shown)}\n{text}", _ASKED, tuple(common))

    def _list(self, rng: random.Random, units: int, often: int, seldom: int) -> tuple[str, list[str]]:
        drawn = self._draw(rng, units)
        common = drawn[:_NUM_COMMON]
        words = common * often + drawn[_NUM_COMMON:] * seldom
        rng.shuffle(words)
        return _LIST.format(context=_numbered(words)), common

    def _draw(self, rng: random.Random, count: int) -> list[str]:
        if count <= len(self.words):
            return rng.sample(self.words, count)
        pairs: dict[str, None] = {}
        while len(pairs) < count:
            pairs["-".join(rng.choices(self.words, k=2))] = None
        return list(pairs)


def coded_words(rng: random.Random, units: int, length: int) -> Problem:
    """The maker of `fwe`: invented words whose frequencies follow a zeta distribution; units are words drawn."""
    vocabulary: dict[str, None] = {}
    while len(vocabulary) < max(length // _TOKENS_PER_CODED_WORD, 5):
        vocabulary["".join(rng.choices(string.ascii_lowercase, k=_WORD_LENGTH))] = None
    ranked = ["...", *list(vocabulary)[1:]]
    text = [word for rank, word in enumerate(ranked, 1) for _ in range(int(units * rank**-_ALPHA / _ZETA_2))]
    rng.shuffle(text)
    return Problem(_CODED.format(context=" ".join(text)), _CODED_ASKED, tuple(ranked[1:4]))


def _numbered(words: list[str]) -> str:
    return " ".join(f"{place}. {word}" for place, word in enumerate(words, 1))
