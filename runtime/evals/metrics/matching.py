"""Answers that must stand somewhere in the output: needles, keyed values, names, classes, verdicts."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from moorage.workers.errors import InvalidRequest

_SEPARATORS = re.compile(r"[\n:\"'.,?!{}]")
_WORDS = re.compile(r"[^\W_]+")


def match_all(output: str, answers: Sequence[str]) -> float:
    """Share of the answers that stand in the output, in any case (RULER's string_match_all)."""
    said = output.lower()
    return sum(answer.lower() in said for answer in answers) / len(answers) if answers else 0.0


def match_part(output: str, answers: Sequence[str]) -> float:
    """1 when any answer stands in the output, in any case (RULER's string_match_part)."""
    said = output.lower()
    return float(any(answer.lower() in said for answer in answers))


def among_words(output: str, answers: Sequence[str]) -> float:
    """1 when an answer is one of the output's words, whatever quotes and braces stand round it."""
    words = _SEPARATORS.sub(" ", output).split()
    return float(any(answer in words for answer in answers))


def named(output: str, answers: Sequence[str]) -> float:
    """1 when a name's words stand in the output one after the other, in any case (InfiniteBench's dialogues)."""
    said = _spaced(output)
    return float(any(_spaced(answer) in said for answer in answers if _WORDS.search(answer)))


def classification(classes: Sequence[str]) -> Callable[[str, Sequence[str]], float]:
    """A metric: one over the number of classes named when the right one is among them (LongBench).

    A class that is only part of the right one's name does not count as named.
    """

    def score(output: str, answers: Sequence[str]) -> float:
        best = 0.0
        for answer in answers:
            found = [name for name in classes if name in output and (name == answer or name not in answer)]
            if answer in found:
                best = max(best, 1 / len(found))
        return best

    return score


def edit_similarity(output: str, answers: Sequence[str]) -> float:
    """Likeness of the first line of code to an answer, by the edits between them (LongBench's code tasks).

    Lines with a comment or a code fence are passed over.
    """
    try:
        from rapidfuzz.fuzz import ratio
    except ImportError:
        raise InvalidRequest("edit similarity needs rapidfuzz; pip install 'moorage[eval]'") from None
    lines = output.lstrip("\n").split("\n")
    line = next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")
    return max((ratio(line, answer) / 100 for answer in answers), default=0.0)


def verdict(output: str, answers: Sequence[str]) -> float:
    """Mean of two verdicts, what the text says and what the world says: `True [fact: False]` (L-Eval's SciFi)."""
    said, right = (_verdicts(text) for text in (output, answers[0]))
    return sum(a == b for a, b in zip(said, right, strict=True) if b) / 2


def _verdicts(text: str) -> tuple[str, str]:
    loyal, _, fact = text.lower().partition("[fact:")
    first, second = (re.search("true|false", part) for part in (loyal, fact))
    return first[0] if first else "", second[0] if second else ""


def _spaced(text: str) -> str:
    return f" {' '.join(_WORDS.findall(text.upper()))} "
