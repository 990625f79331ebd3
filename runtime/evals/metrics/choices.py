"""Multiple choice: which letter an answer means, in the forms that models write."""

from __future__ import annotations

import re
from collections.abc import Sequence

from moorage.runtime.evals.metrics.text import normalise

_OPEN, _ARTICLE = r"[\s(\[{*\"'`_]*", r"(?![A-Za-z'’]|[ \t]+[a-z])"
"""Brackets and marks before a letter; what must not follow it: "A dog" begins with an article, not with a choice."""
_FIRST = re.compile(rf"^{_OPEN}([A-D]){_ARTICLE}")
_TOLD = re.compile(
    rf"(?i:answer|option|choice)(?i:\s+is|\s+would\s+be)?\s*:?{_OPEN}(?i:option\s+)?([A-D]){_ARTICLE}"
)
_ALONE = re.compile(rf"(?<![A-Za-z])([A-D]){_ARTICLE}")
_LETTERS = re.compile(r"^[\s(\[*\"']*([A-D](?:\s*(?:,|and|&)?\s*[A-D])*)(?![A-Za-z])")


def chosen_letter(output: str) -> str | None:
    """A, B, C or D: at the start, else after "the answer is", else the first that stands alone."""
    text = output.strip()
    for form in (_FIRST, _TOLD, _ALONE):
        found = form.search(text)
        if found is not None:
            return found[1]
    return None


def choice(output: str, answers: Sequence[str]) -> float:
    """1 when the letter answers[0] is chosen, or, where no letter is named, an answer's words are given."""
    letter = chosen_letter(output)
    if letter is not None:
        return float(letter == answers[0])
    said = f" {normalise(output)} "
    return float(any(f" {normalise(words)} " in said for words in answers[1:] if normalise(words)))


def choice_or_name(output: str, answers: Sequence[str]) -> float:
    """1 when the output begins with the name answers[1], else as `choice` (InfiniteBench's Code.Debug)."""
    name = re.compile(rf"[\s`'\"*]*{re.escape(answers[1])}(?!\w)")
    return 1.0 if name.match(output) else choice(output, answers)


def letter_set(output: str, answers: Sequence[str]) -> float:
    """1 for all the right letters, a quarter for some of them and no wrong one (L-Eval's Coursera)."""
    found = _LETTERS.match(output.strip())
    letter = chosen_letter(output)
    chosen = set(re.findall("[A-D]", found[1])) if found else {letter} if letter else set()
    right = set(answers[0])
    if chosen == right:
        return 1.0
    return 0.25 if chosen and chosen < right else 0.0
